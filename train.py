"""Train, validate or test any model here: python train.py fit --config configs/vae.yaml"""

import sys

import system.environment  # noqa: F401 - before Lightning  # isort: skip
import wandb
from lightning.pytorch.cli import ArgsType

from cli.quiet import quiet_lightning
from cli.run import PigmentCLI, in_plain_words
from resuming.together import ending_together
from system.command import Command
from system.hardware import keep_freed_memory, within_memory
from system.signals import handling, interrupt


def main(args: ArgsType = None) -> PigmentCLI:
    keep_freed_memory()
    quiet_lightning()
    with handling(interrupt), Command() as command:
        try:
            with ending_together(), in_plain_words(), within_memory("Lower --data.init_args.batch_size."):
                return PigmentCLI(command, args)
        finally:
            # otherwise the next call in this process would go on with its run
            wandb.finish(exit_code=int(sys.exc_info()[0] is not None))
    raise SystemExit(command.status)


if __name__ == "__main__":
    main()

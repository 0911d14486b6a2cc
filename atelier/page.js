() => {
    const take = event => {  // a file that is pasted, or dropped beside the box for it
        const {files} = event.clipboardData ?? event.dataTransfer;
        if (!files.length || event.defaultPrevented) return;
        event.preventDefault();  // or the browser would show a dropped file instead of the page
        const kept = new DataTransfer();  // the event's own files are gone when it is over
        for (const file of files) kept.items.add(file);
        give(kept.files, performance.now());
    };
    const give = (files, since) => {
        const inputs = [...document.querySelectorAll("input[type=file]")];
        const input = inputs.find(one => one.closest(".block")?.offsetParent);
        if (input) {
            input.files = files;
            input.dispatchEvent(new Event("change"));
        } else if (performance.now() - since < 5000)  // the box is still busy with the last file
            setTimeout(give, 50, files, since);
    };
    document.addEventListener("paste", take);
    document.addEventListener("drop", take);
    document.addEventListener("dragover", event => event.preventDefault());  // or nothing could be dropped
    new MutationObserver(() => {  // a label names the first control in it, which is Gradio's button to copy
        for (const text of document.querySelectorAll("label:has(button) textarea:not([aria-label])"))
            text.ariaLabel = text.closest("label").querySelector("[data-testid=block-info]").innerText.trim();
        document.querySelector("#said [data-testid=markdown]")?.setAttribute("role", "status");
    }).observe(document.body, {childList: true, subtree: true});
    document.addEventListener("click", event => {  // Gradio's arrow beside several choices opens nothing by itself
        event.target.closest(".icon-wrap")?.parentElement.querySelector("[role=combobox]")?.focus();
    });
}

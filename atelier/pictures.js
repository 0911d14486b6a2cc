// For a gr.HTML. A click on an element with data-act sends that and its data-what, or the color in the field beside it.
let byKey;
document.addEventListener('pointerdown', () => byKey = false, true);
element.addEventListener('click', event => {
    byKey = event.detail == 0;
    const {act, what = element.querySelector('[type=color]')?.value} = event.target.closest('a, [data-act]')?.dataset ?? {};
    if (act) trigger('click', {act, what});
});
const field = element.querySelector('[type=color]');  // keeps its color when it is hidden and shown again
if (field) {
    field.value = document.body.dataset.own ?? field.value;
    field.addEventListener('input', () => document.body.dataset.own = field.value);
}

// The line between before and after stays where it is when the picture is redrawn.
element.addEventListener('input', ({target}) => {
    if (target.type == 'range') element.style.setProperty('--given', `${target.value}%`);
});

// Pointing into a pad, by mouse, finger, or arrow keys, sends x and y, shares across and down, and when.
let goal, waiting, before;
const pad = () => element.querySelector('[role=slider]');
const frame = () => element.querySelector('.pad .frame');
const ring = () => element.querySelector('i').style;
function go(x, y) {
    goal = {x: Math.min(1, Math.max(0, x)), y: Math.min(1, Math.max(0, y))};
    const percent = {x: Math.round(100 * goal.x), y: Math.round(100 * goal.y)};
    ring().cssText = `left: ${100 * goal.x}%; top: ${100 * goal.y}%`;
    pad().setAttribute('aria-valuenow', percent.x);
    pad().setAttribute('aria-valuetext', `${percent.x} % across, ${percent.y} % down`);
    waiting ??= setTimeout(send, 80);  // not for each pixel of a drag
}
function send() {
    clearTimeout(waiting);
    if (waiting) trigger('input', goal = {...goal, when: performance.now()});
    waiting = undefined;
}
function follow(event) {
    const box = frame().getBoundingClientRect();
    go((event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height);
}
watch('value', () => {
    if (byKey && document.activeElement == document.body)  // what was pressed is gone
        (element.querySelector('button') ?? [...document.querySelectorAll('.pad')].find(one => one.offsetParent))?.focus();
    byKey = false;
    const line = element.querySelector('[type=range]');
    if (line) line.value = parseFloat(element.style.getPropertyValue('--given') || 50);
    const when = +pad()?.dataset.when;  // when the picture was pointed into that is drawn here, unless it is new
    if (when && goal?.when > when) ring().cssText = `left: ${100 * goal.x}%; top: ${100 * goal.y}%`;
});
element.addEventListener('pointerdown', event => {
    if (event.button || !event.isPrimary || !frame()?.contains(event.target)) return;
    event.preventDefault();
    pad().focus({preventScroll: true});
    element.setPointerCapture(event.pointerId);
    before = ring().cssText;
    if (event.pointerType != 'touch') follow(event);  // a finger may be about to scroll, which cancels this
});
for (const goes of ['pointermove', 'pointerup'])
    element.addEventListener(goes, event => { if (element.hasPointerCapture(event.pointerId)) follow(event); });
element.addEventListener('pointercancel', () => {
    waiting = clearTimeout(waiting);
    if (pad()) ring().cssText = before;
});
for (const end of ['pointerup', 'keyup']) element.addEventListener(end, send);  // at once: what is pressed next needs the place
element.addEventListener('keydown', event => {
    const step = {ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1],
        Home: [-50, 0], End: [50, 0], PageUp: [0, -10], PageDown: [0, 10]}[event.key];
    if (!step || event.target !== pad()) return;
    event.preventDefault();
    const {left, top} = ring();
    go(parseFloat(left) / 100 + step[0] / 50, parseFloat(top) / 100 + step[1] / 50);
});

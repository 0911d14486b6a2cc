// For a gr.HTML. A click on an element with data-act sends that and its data-what, or the color in the field beside it.
let byKey;
document.addEventListener('pointerdown', function forget() {  // or a later answer would take the focus from a mouse
    byKey = false;
    if (!element.isConnected) document.removeEventListener('pointerdown', forget, true);
}, true);
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
function here() {
    const {left, top} = ring();
    return {x: parseFloat(left) / 100, y: parseFloat(top) / 100};
}
function draw({x, y}) {
    ring().cssText = `left: ${100 * x}%; top: ${100 * y}%`;
    pad().setAttribute('aria-valuenow', Math.round(100 * x));
    pad().setAttribute('aria-valuetext', `${Math.round(100 * x)} % across, ${Math.round(100 * y)} % down`);
}
function go(x, y) {
    goal = {x: Math.min(1, Math.max(0, x)), y: Math.min(1, Math.max(0, y)), when: performance.now()};
    draw(goal);
    waiting ??= setTimeout(send, 80);  // not for each pixel of a drag
}
function send() {
    clearTimeout(waiting);
    if (waiting) trigger('input', before = goal);
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
    const when = +pad()?.dataset.when;  // when the spot drawn here was pointed at; 0 in a new picture
    if (when && goal?.when > when) draw(goal);
});
element.addEventListener('pointerdown', event => {
    if (event.button || !event.isPrimary || !frame()?.contains(event.target)) return;
    event.preventDefault();
    pad().focus({preventScroll: true});
    element.setPointerCapture(event.pointerId);
    before = here();
    if (event.pointerType != 'touch') follow(event);  // a finger may be about to scroll, which cancels this
});
for (const goes of ['pointermove', 'pointerup'])
    element.addEventListener(goes, event => { if (pad() && element.hasPointerCapture(event.pointerId)) follow(event); });
element.addEventListener('pointercancel', event => {
    if (!element.hasPointerCapture(event.pointerId)) return;  // it began beside the picture
    waiting = clearTimeout(waiting);
    if (pad()) draw(before);
});
for (const end of ['pointerup', 'keyup']) element.addEventListener(end, send);  // at once: what is pressed next needs the place
element.addEventListener('keydown', event => {
    const step = {ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1],
        Home: [-50, 0], End: [50, 0], PageUp: [0, -10], PageDown: [0, 10]}[event.key];
    if (!step || event.target !== pad()) return;
    event.preventDefault();
    const {x, y} = here();
    go(x + step[0] / 50, y + step[1] / 50);
});

// For a gr.HTML. A click on an element with data-act sends that and its data-what, or the color in the field beside it.
let byKey;
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
let place, goal, waiting;
const pad = () => element.querySelector('[role=slider]');
const frame = () => element.querySelector('.pad .frame');
const ring = () => element.querySelector('i').style;
function go(x, y) {
    place = goal = {x: Math.min(1, Math.max(0, x)), y: Math.min(1, Math.max(0, y))};
    const percent = {x: Math.round(100 * place.x), y: Math.round(100 * place.y)};
    ring().cssText = `left: ${100 * place.x}%; top: ${100 * place.y}%`;
    pad().setAttribute('aria-valuenow', percent.x);
    pad().setAttribute('aria-valuetext', `${percent.x} % across, ${percent.y} % down`);
    waiting ??= setTimeout(send, 80);  // not for each pixel of a drag
}
function send() {
    clearTimeout(waiting);
    if (waiting) trigger('input', {...goal, when: performance.now()});
    waiting = undefined;
}
function follow(event) {
    const box = frame().getBoundingClientRect();
    go((event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height);
}
watch('value', () => {
    if (byKey && document.activeElement == document.body)  // what was pressed is gone
        element.querySelector('button')?.focus();
    byKey = false;
    const line = element.querySelector('[type=range]');
    if (line) line.value = parseFloat(element.style.getPropertyValue('--given') || 50);
    if (pad()) place = {x: parseFloat(ring().left || 50) / 100, y: parseFloat(ring().top || 50) / 100};
});
element.addEventListener('pointerdown', event => {
    if (!frame()?.contains(event.target)) return;
    event.preventDefault();
    pad().focus({preventScroll: true});
    element.setPointerCapture(event.pointerId);
    follow(event);
});
element.addEventListener('pointermove', event => { if (element.hasPointerCapture(event.pointerId)) follow(event); });
for (const end of ['pointerup', 'keyup']) element.addEventListener(end, send);  // at once: what is pressed next needs the place
element.addEventListener('keydown', event => {
    const step = {ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1],
        Home: [-50, 0], End: [50, 0], PageUp: [0, -10], PageDown: [0, 10]}[event.key];
    if (!step || event.target !== pad()) return;
    event.preventDefault();
    go(place.x + step[0] / 50, place.y + step[1] / 50);
});

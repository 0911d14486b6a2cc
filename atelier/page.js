() => {
    document.addEventListener("paste", event => {  // puts a pasted file where one would be dropped
        const inputs = [...document.querySelectorAll("input[type=file]")];
        const input = inputs.find(one => one.closest(".block")?.offsetParent);
        if (input && event.clipboardData.files.length) {
            input.files = event.clipboardData.files;
            input.dispatchEvent(new Event("change"));
        }
    });
    document.addEventListener("click", event => {  // Gradio's arrow beside several choices opens nothing by itself
        event.target.closest(".icon-wrap")?.parentElement.querySelector("[role=combobox]")?.focus();
    });
}

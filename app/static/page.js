// Gradio's pictures come without words for those who cannot see them: each gets the label of its block.
(() => {
  const name = () => {
    for (const image of document.querySelectorAll(".block img:not([alt]), .block img[alt='']")) {
      const label = image.closest(".block").querySelector("[data-testid=block-label]");
      if (label) image.alt = label.innerText.trim();
    }
  };
  new MutationObserver(name).observe(document, { childList: true, subtree: true });
})();

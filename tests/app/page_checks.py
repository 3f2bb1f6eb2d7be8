"""What a browser can measure of a page: contrast, names, what sticks out sideways."""

# Every visible text and its ground, layer over layer, by WCAG 2's formula; what is switched off is left out.
FAINT_TEXTS = r"""(least) => {
  const parse = (colour) => [...colour.match(/[\d.]+/g).map(Number), 1].slice(0, 4);
  const over = (top, below) => [...[0, 1, 2].map((k) => top[k] * top[3] + below[k] * (1 - top[3])), 1];
  const linear = (part) => (part <= 0.03928 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4);
  const weights = [0.2126, 0.7152, 0.0722];
  const light = (c) => weights.reduce((sum, weight, k) => sum + weight * linear(c[k] / 255), 0);
  const ground = (node) => {
    const layers = [];
    for (let at = node; at; at = at.parentElement) layers.push(parse(getComputedStyle(at).backgroundColor));
    return layers.reverse().reduce((below, top) => over(top, below), [255, 255, 255, 1]);
  };
  const faint = [];
  for (const node of document.querySelectorAll("body *")) {
    const box = node.getBoundingClientRect();
    if (box.width < 2 || box.height < 2 || node.closest("[disabled], [aria-disabled=true]")) continue;
    if (!node.checkVisibility({ opacityProperty: true, visibilityProperty: true })) continue;
    const types = "[type=range], [type=checkbox], [type=radio], [type=color], [type=file]";
    const field = node.matches("input, textarea") && !node.matches(types);
    const texts = [...node.childNodes].filter((one) => one.nodeType === 3 && one.textContent.trim());
    if (!field && !texts.length) continue;
    const style = getComputedStyle(node, field && !node.value ? "::placeholder" : null);
    const below = ground(node);
    const [a, b] = [light(over(parse(style.color), below)), light(below)];
    const contrast = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    const words = (texts[0]?.textContent || node.value || node.placeholder || "").trim();
    if (words && contrast < least) faint.push(`${contrast.toFixed(2)} ${node.tagName} ${words.slice(0, 40)}`);
  }
  return faint;
}"""
# Visible things to press, fill in or look at that a screen reader could not name.
NAMELESS = """() => {
  const nameless = [], kinds = "button, input, textarea, select, canvas, img, [role=slider]";
  for (const node of document.querySelectorAll(kinds)) {
    if (!node.checkVisibility({ visibilityProperty: true }) || node.closest("[aria-hidden=true]")) continue;
    if (node.matches("img[alt=''], input[type=file]")) continue; // an ornament; what its own button names
    const ids = (node.getAttribute("aria-labelledby") || "").split(" ");
    const labels = [...ids.map((id) => document.getElementById(id)), ...(node.labels || [])];
    if (node.matches("button")) labels.push(node);
    const inner = [...node.querySelectorAll("img")].map((one) => one.alt);
    const own = ["aria-label", "title", "alt", "placeholder"].map((name) => node.getAttribute(name));
    const names = [...own, ...inner, ...labels.map((one) => one?.innerText)];
    if (!names.some((name) => name && name.trim())) nameless.push(node.outerHTML.slice(0, 200));
  }
  return nameless;
}"""
# Whatever ends right of the window and can be seen there.
STICKS_OUT = """() => {
  const wide = document.documentElement.clientWidth;
  if (document.documentElement.scrollWidth <= wide) return [];
  const nodes = [...document.querySelectorAll("body *")];
  const out = nodes.filter((node) => node.getBoundingClientRect().right > wide + 1);
  return out.slice(0, 5).map((node) => node.outerHTML.slice(0, 120));
}"""

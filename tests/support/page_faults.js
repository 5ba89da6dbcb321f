// Returns sentences about what is wrong with the page as it is shown now; used by browser.py.
({contrast, smallest}) => {
  const faults = [], shown = e => e.checkVisibility({visibilityProperty: true});
  const name = e => `<${e.tagName.toLowerCase()}> ${(e.textContent || e.alt || '').trim().slice(0, 40)}`;
  const over = document.documentElement.scrollWidth - innerWidth;
  if (over > 0) faults.push(`the page is ${over} pixels wider than the window`);
  if (![...document.querySelectorAll('h1')].some(shown)) faults.push('there is no h1');
  const ids = [...document.querySelectorAll('[id]')].map(e => e.id);
  for (const id of new Set(ids.filter((id, i) => ids.indexOf(id) !== i)))
    faults.push(`the id ${id} is there twice`);
  for (const e of document.querySelectorAll('img, svg')) {
    const box = e.getBoundingClientRect();
    if (!shown(e) || e.closest('svg') !== e && e.tagName !== 'IMG') continue;
    if (box.width < 1 || box.height < 1) faults.push(`${name(e)} has no size`);
    if (e.tagName === 'IMG' && !e.naturalWidth) faults.push(`${name(e)} is not there`);
  }
  for (const svg of document.querySelectorAll('svg[viewBox]')) {
    if (!shown(svg) || !svg.querySelector('text')) continue;
    const box = svg.getBoundingClientRect(), scale = box.width / svg.viewBox.baseVal.width;
    const level = [...svg.querySelectorAll('text')].filter(e =>
      !/rotate\((?!-?0\b)/.test(e.getAttribute('transform') || ''));
    const boxes = level.map(e => e.getBoundingClientRect());
    level.forEach((one, i) => level.slice(0, i).forEach((other, j) => {
      const [a, b] = [boxes[i], boxes[j]];
      const wide = Math.min(a.right, b.right) - Math.max(a.left, b.left);
      const high = Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top);
      if (wide > 2 && high > .5 * Math.min(a.height, b.height))
        faults.push(`${name(one)} lies on ${name(other)}`);
    }));
    for (const text of svg.querySelectorAll('text')) {
      const own = text.getBoundingClientRect();
      if (own.left < box.left - 1 || own.right > box.right + 1 || own.top < box.top - 1
          || own.bottom > box.bottom + 1) faults.push(`${name(text)} is cut off by its picture`);
      const size = scale * parseFloat(getComputedStyle(text).fontSize);
      if (size < smallest) faults.push(`${name(text)} is ${size.toFixed(1)} pixels high`);
    }
  }
  if (!contrast) return faults;
  const rgba = text => (text.match(/[\d.]+/g) || [0, 0, 0, 0]).map(Number);
  const on = ([r, g, b, a = 1], under) => [r, g, b].map((v, i) => v * a + under[i] * (1 - a));
  const light = rgb => rgb.map(v => v / 255)
    .map(v => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [.2126, .7152, .0722][i], 0);
  const dark = getComputedStyle(document.documentElement).colorScheme.includes('dark')
    && matchMedia('(prefers-color-scheme: dark)').matches;
  const behind = e => {
    if (!e) return dark ? [18, 18, 18] : [255, 255, 255];
    const own = rgba(getComputedStyle(e).backgroundColor);
    return own[3] === undefined ? own : on(own, own[3] === 1 ? own : behind(e.parentElement));
  };
  const seen = new Set(), walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const e = walker.currentNode.parentElement;
    if (!walker.currentNode.textContent.trim() || seen.has(e) || !shown(e)) continue;
    if (['TITLE', 'STYLE', 'SCRIPT'].includes(e.tagName.toUpperCase())) continue;
    seen.add(e);
    const style = getComputedStyle(e), under = behind(e);
    const ink = light(on(rgba(e.closest('svg') ? style.fill : style.color), under));
    const paper = light(under), ratio = (Math.max(ink, paper) + .05) / (Math.min(ink, paper) + .05);
    const size = parseFloat(style.fontSize), large = size >= 24 || size >= 18.6 && style.fontWeight >= 700;
    if (ratio < (large ? 3 : 4.5)) faults.push(`${name(e)} has a contrast of ${ratio.toFixed(2)}`);
  }
  return faults;
}

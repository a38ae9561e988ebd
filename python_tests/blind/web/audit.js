// What is wrong with the page that is shown, as sentences; LEAST is a height in pixels.
(() => {
  const wrong = [], root = document.documentElement;
  const parts = c => c.match(/[\d.]+/g).map(Number);
  const light = c => parts(c).slice(0, 3).map(v => v / 255).map(
      v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4
    ).reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const solid = c => { const p = parts(c); return p.length < 4 || p[3] === 1; };
  const behind = e => {
    for (; e; e = e.parentElement) {
      const c = getComputedStyle(e).backgroundColor;
      if (solid(c)) return c;
    }
    return getComputedStyle(root).colorScheme.includes('dark') ? null : 'rgb(255, 255, 255)';
  };
  const seen = e => e.checkVisibility() && e.getBoundingClientRect().width > 1;
  if (root.scrollWidth > innerWidth) {
    const wide = [...document.querySelectorAll('body *')].filter(
      e => e.getBoundingClientRect().right > innerWidth && !e.closest('.scroll'));
    wrong.push(`scrolls sideways: ${root.scrollWidth} of ${innerWidth} px, by ` +
      wide.slice(-3).map(e => e.outerHTML.slice(0, 60)).join(' | '));
  }
  if (visualViewport.scale !== 1) wrong.push(`is zoomed by ${visualViewport.scale}`);
  if (document.scripts.length) wrong.push('has a script');
  if (!document.title) wrong.push('has no title');
  if (root.lang !== 'en') wrong.push('does not say its language');
  if (document.querySelectorAll('h1').length !== 1) wrong.push('has not one h1');
  for (const e of document.querySelectorAll('button, summary, select, input:not([type=hidden]), textarea, nav a, a.main')) {
    const box = (e.closest('label') || e).getBoundingClientRect();
    if (seen(e) && box.height < LEAST) wrong.push(`${box.height} px high: ${e.outerHTML.slice(0, 80)}`);
    if (e.matches('select, input, textarea') && !e.labels.length) wrong.push(`no label: ${e.outerHTML}`);
  }
  const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (texts.nextNode()) {
    const e = texts.currentNode.parentElement;
    if (!texts.currentNode.data.trim() || !seen(e) || e.closest('svg, style')) continue;
    const back = behind(e);
    if (back === null) { wrong.push(`no background: ${e.outerHTML.slice(0, 80)}`); continue; }
    const [a, b] = [light(getComputedStyle(e).color), light(back)].sort((x, y) => x - y);
    const ratio = (b + 0.05) / (a + 0.05);
    if (ratio < 4.5) wrong.push(`contrast ${ratio.toFixed(2)}: ${e.outerHTML.slice(0, 80)}`);
  }
  return wrong;
})()

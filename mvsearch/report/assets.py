"""Style and script of the page; colours of blocks come from `mvsearch.report.strip`."""

CSS = """
:root { color-scheme: light dark; --ink: #1B1E23; --muted: #5B626C; --paper: #FFFFFF; --line: #DDE0E4;
  --panel: #F6F7F8; --accent: #0072B2; --bad: #B3261E; --good: #00734F; --grid: rgba(91,98,108,.22); }
@media (prefers-color-scheme: dark) { :root { --ink: #E8EAED; --muted: #A3AAB4; --paper: #14161A; --line: #33383F;
  --panel: #1C1F24; --accent: #6BB8EA; --bad: #FF8A80; --good: #4CC9A0; --grid: rgba(163,170,180,.25); } }
@media print { :root { --ink: #000; --muted: #444; --paper: #FFF; --line: #CCC; --panel: #FFF; --accent: #0072B2;
  --bad: #B3261E; --good: #00734F; --grid: rgba(91,98,108,.22); } button { color: inherit; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif;
  font-variant-numeric: tabular-nums; overflow-wrap: break-word; }
main { max-width: 72rem; margin: 0 auto; padding: 2.5rem 1.25rem 4rem; }
h1 { font-size: 1.75rem; line-height: 1.2; margin: 0 0 .25rem; }
h2 { font-size: 1.3rem; line-height: 1.3; margin: 2.5rem 0 .5rem; }
h3 { font-size: 1rem; margin: 1.75rem 0 .25rem; }
p { margin: .5rem 0; max-width: 46rem; }
.lede, .note, figcaption { color: var(--muted); }
.note, figcaption { font-size: .9rem; max-width: 46rem; }
.bad { color: var(--bad); }
a { color: var(--accent); }
:focus-visible { outline: 3px solid var(--accent); outline-offset: 2px; border-radius: 2px; }
nav { display: flex; flex-wrap: wrap; gap: .25rem 1.1rem; margin: .75rem 0 0; font-size: .9rem; }
.answer { display: grid; gap: 1rem; grid-template-columns: minmax(0, 1fr); margin: 1rem 0; }
@media (min-width: 56rem) { .answer { grid-template-columns: minmax(0, 1fr) 19rem; } }
.take { border: 1px solid var(--line); border-left: 5px solid var(--accent); border-radius: 8px;
  background: var(--panel); padding: 1rem 1.2rem; min-width: 0; }
.take h2 { margin: 0 0 .7rem; }
.take h2 .note { font-weight: 400; margin-left: .5em; }
.take .big { font-size: 1.2rem; }
.take p { margin: .6rem 0; }
.nb { white-space: nowrap; }
.big-strip .strip { font-size: 1.1rem; }
.verdicts ul { list-style: none; margin: 0; padding: 0; display: grid; gap: .6rem; }
.verdicts li { border: 1px solid var(--line); border-left: 5px solid var(--muted); border-radius: 8px;
  padding: .6rem .8rem; font-size: .9rem; line-height: 1.4; color: var(--muted); overflow-wrap: anywhere; }
.verdicts b { color: var(--ink); }
.verdicts .green { border-left-color: var(--good); }
.verdicts .amber { border-left-color: #E69F00; }
.verdicts .red { border-left-color: var(--bad); }
b.green { color: var(--good); } b.red { color: var(--bad); }
ul { margin: .4rem 0; padding-left: 1.2rem; max-width: 52rem; }
li { margin: .15rem 0; }
button.copy, .find button { font: inherit; font-size: .85rem; color: var(--accent); background: transparent;
  cursor: pointer; border: 1px solid var(--line); border-radius: 5px; padding: .15rem .55rem; white-space: nowrap; }
button.copy:hover, .find button:hover { border-color: var(--accent); }
.find { display: flex; flex-wrap: wrap; gap: .5rem 1rem; align-items: center; margin: .5rem 0; }
.find input { font: inherit; color: inherit; background: var(--panel);
  border: 1px solid var(--muted); border-radius: 5px; padding: .25rem .5rem; width: min(17rem, 60vw); }
.find span[role=group] { display: flex; gap: .3rem; }
.find button[aria-pressed=true] { background: var(--accent); border-color: var(--accent); color: var(--paper); }
.picks { display: grid; gap: 1rem;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 20rem), 1fr));
  margin: 1.25rem 0; }
.pick { border: 1px solid var(--line); border-radius: 8px; padding: 1rem 1.1rem; background: var(--panel); min-width: 0;
  break-inside: avoid; }
.pick h3 { margin: 0 0 .6rem; }
.pick .big { font-size: 1.1rem; font-weight: 600; margin: .6rem 0 .2rem; }
.pick b.big { font-size: 1rem; }
.pick p { margin: .35rem 0; font-size: .93rem; }
.scroll { overflow-x: auto; max-width: 100%; }
.scroll.tall { max-height: 36rem; overflow-y: auto; }
figure { margin: 1rem 0; break-inside: avoid; }
.plot { width: 100%; }
.pairs { display: grid; gap: 0 1.5rem; grid-template-columns: repeat(auto-fit, minmax(min(100%, 22rem), 1fr)); }
.pairs figure { min-width: 0; margin: .5rem 0; }
.pairs h4 { margin: .5rem 0 0; font-size: .93rem; font-weight: 600; }
table { border-collapse: collapse; font-size: .9rem; margin: .5rem 0; }
th, td { padding: .4rem .7rem; text-align: left; vertical-align: bottom; border-bottom: 1px solid var(--line); }
th { font-weight: 600; color: var(--muted); }
.tall thead th { position: sticky; top: 0; background: var(--paper); z-index: 1; }
td.n, th.n { text-align: right; white-space: nowrap; }
td.w { white-space: nowrap; }
td.wide { min-width: 16rem; overflow-wrap: anywhere; }
th button { all: unset; cursor: pointer; font-weight: 600; }
th button:focus-visible { outline: 3px solid var(--accent); outline-offset: 2px; }
th[aria-sort=ascending] button::after { content: " \\2191"; }
th[aria-sort=descending] button::after { content: " \\2193"; }
.tag { border: 1px solid var(--line); border-radius: 4px; padding: 0 .35em; font-size: .85em; white-space: nowrap; }
.tag.on { border-color: var(--accent); color: var(--accent); }
details { border-top: 1px solid var(--line); padding: .25rem 0; }
details:last-of-type { border-bottom: 1px solid var(--line); }
summary { cursor: pointer; font-weight: 600; padding: .5rem 0; }
summary .note { font-weight: 400; }
pre { background: var(--panel); border: 1px solid var(--line); border-radius: 6px; padding: .8rem 1rem;
  overflow-x: auto;  font: .85rem/1.45 ui-monospace, 'SF Mono', Menlo, Consolas, monospace; }
code { font: .9em ui-monospace, 'SF Mono', Menlo, Consolas, monospace; overflow-wrap: anywhere; }
@media (max-width: 30rem) { main { padding: 1.25rem 1rem 3rem; } h1 { font-size: 1.45rem; }
  th, td { padding: .35rem .5rem; } }
"""

SCRIPT = """
(function () {
  'use strict';
  const specs = JSON.parse(document.getElementById('figures').textContent);
  const buttons = ['zoom2d', 'zoomIn2d', 'zoomOut2d', 'resetScale2d', 'toImage'];
  const config = {displaylogo: false, responsive: true, modeBarButtons: [buttons]};
  const drawn = new Set();

  // A figure takes the colours of the page, light or dark, when it is drawn and whenever they change.
  function colours(layout) {
    const style = getComputedStyle(document.documentElement);
    const read = (name) => style.getPropertyValue(name).trim();
    const change = {'font.color': read('--ink')};
    for (const name of Object.keys(layout)) {
      if (/^[xy]axis\\d*$/.test(name)) {
        change[name + '.gridcolor'] = change[name + '.linecolor'] = read('--grid');
      }
    }
    return change;
  }
  function draw(node) {
    const spec = specs[node.dataset.figure];
    if (drawn.has(node) || !spec) { return; }
    drawn.add(node);
    Plotly.newPlot(node, spec.data, spec.layout, config).then(() => Plotly.relayout(node, colours(spec.layout)));
  }
  function recolour() { drawn.forEach((node) => Plotly.relayout(node, colours(specs[node.dataset.figure].layout))); }

  // A folded figure has no width yet: it is drawn when its section opens.
  document.querySelectorAll('.plot').forEach((node) => { if (!node.closest('details:not([open])')) { draw(node); } });
  document.querySelectorAll('details').forEach((section) => section.addEventListener('toggle', () => {
    if (section.open) { section.querySelectorAll('.plot').forEach(draw); }
  }));
  matchMedia('(prefers-color-scheme: dark)').addEventListener('change', recolour);
  matchMedia('print').addEventListener('change', recolour);
  addEventListener('beforeprint', () => {
    document.querySelectorAll('details').forEach((section) => { section.open = true; });
  });

  document.querySelectorAll('table.sortable').forEach((table) => {
    const heads = [...table.tHead.rows[0].cells];
    heads.forEach((head, column) => head.querySelector('button').addEventListener('click', () => {
      const down = head.getAttribute('aria-sort') === 'ascending';
      const value = (row) => row.cells[column].dataset.v ?? row.cells[column].textContent;
      const body = table.tBodies[0];
      const rows = [...body.rows].sort((a, b) => {
        const [x, y] = [value(a), value(b)];
        if (x === '' || y === '') { return (x === '') - (y === ''); }
        const order = isNaN(x) || isNaN(y) ? x.localeCompare(y) : x - y;
        return down ? -order : order;
      });
      body.append(...rows);
      heads.forEach((other) => other.removeAttribute('aria-sort'));
      head.setAttribute('aria-sort', down ? 'descending' : 'ascending');
    }));
  });
  // -- copying a layout: the clipboard's own way, or a selection where a page from a folder may not use it
  const layouts = JSON.parse(document.getElementById('layouts').textContent);
  async function copy(text) {
    try { await navigator.clipboard.writeText(text); return true; } catch (error) {
      const field = document.createElement('textarea');
      field.value = text;
      field.style.position = 'fixed';
      document.body.append(field);
      field.select();
      const done = document.execCommand('copy');
      field.remove();
      return done;
    }
  }
  document.querySelectorAll('button.copy').forEach((button) => button.addEventListener('click', async () => {
    const label = button.textContent;
    const done = await copy(layouts[button.dataset.layout]);
    button.textContent = done ? 'Copied' : 'Cannot copy';
    button.focus();
    setTimeout(() => { button.textContent = label; }, 1500);
  }));

  // -- searching and filtering the trials: every word must be there
  const find = document.getElementById('find');
  if (find) {
    const rows = [...document.querySelectorAll('table.sortable tbody tr')];
    const kinds = [...document.querySelectorAll('.find button')];
    const show = () => {
      const words = find.value.toLowerCase().split(/\\s+/).filter(Boolean);
      const kind = kinds.find((button) => button.getAttribute('aria-pressed') === 'true').dataset.kind;
      let count = 0;
      rows.forEach((row) => {
        const fits = words.every((word) => row.dataset.t.includes(word))
          && (kind === 'all' || row.dataset.k.split(' ').includes(kind));
        row.hidden = !fits;
        count += fits;
      });
      document.getElementById('found').textContent = `${count} of ${rows.length}`;
    };
    find.addEventListener('input', show);
    kinds.forEach((button) => button.addEventListener('click', () => {
      kinds.forEach((other) => other.setAttribute('aria-pressed', String(other === button)));
      show();
    }));
    // The link to the trials opens them.
    const open = () => { if (location.hash === '#trials') { document.getElementById('trials-table').open = true; } };
    addEventListener('hashchange', open);
    open();
  }
  document.documentElement.dataset.ready = String(drawn.size);
})();
"""

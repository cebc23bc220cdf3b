// Charts as SVG. What they show in colours and lengths stands in words in their labels, and in the table below them.
import { h, percent, s } from './dom.js';

/** Return a bar of a share in [0, 1] with a mark at the share that was asked for. */
export function meter(share, asked) {
  const label = `${percent(share)}${asked === null || asked > 1 ? '' : `, ${percent(asked)} asked for`}`;
  return s('svg', { class: 'meter', viewBox: '0 0 200 14', role: 'img', 'aria-label': label },
    s('rect', { class: 'ground', width: 200, height: 8, y: 3, rx: 2 }),
    s('rect', { class: asked === null || share >= asked ? 'fill enough' : 'fill', width: 200 * share, height: 8, y: 3, rx: 2 }),
    asked !== null && asked <= 1 && s('path', { class: 'asked', d: `M${200 * asked} 0v14` }));
}

/** Return the round steps of an axis from 0 to at least `most`. */
function steps(most, whole) {
  const rough = most / 4;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 2.5, 5, 10].map((n) => n * power).find((n) => n >= rough && (!whole || n >= 1 && n % 1 === 0)) ?? 1;
  return Array.from({ length: Math.max(1, Math.ceil(most / step - 1e-9)) + 1 }, (_, index) => index * step);
}

/** Return stacked bars over time.
 *
 * `series` are {name, class, values}, from the ground up; `beside` is another value a bar, drawn as a mark across it;
 * `text` writes a value, `ticks` are the labels below the bars ('' leaves one out), `names` what a bar is called. */
export function bars({ label, series, beside, names, ticks, text, whole = false }) {
  const [width, height, top, bottom] = [innerWidth < 640 ? 360 : 500, 200, 8, 26];
  const totals = names.map((_, index) => series.reduce((sum, one) => sum + one.values[index], 0));
  const most = Math.max(...totals, ...(beside?.values ?? []), 0);
  const axis = steps(most || 1, whole);
  const left = 14 + 7.5 * Math.max(...axis.map((value) => text(value).length));  // figures of 13 px are 7.2 wide
  const y = (value) => top + (height - top - bottom) * (1 - value / axis.at(-1));
  const each = (width - left) / names.length;
  const column = (name, index) => {
    let under = 0;
    const x = left + each * index + each * 0.14;
    const parts = series.map(({ class: kind, values }) => {
      const [from, to] = [y(under), y((under += values[index]))];
      return values[index] > 0 && s('rect', { class: kind, x, width: each * 0.72, y: to, height: Math.max(from - to, 0.8) });
    });
    const mark = beside && beside.values[index] > 0
      && s('path', { class: beside.class, d: `M${left + each * index + each * 0.04} ${y(beside.values[index])}h${each * 0.92}` });
    const told = [...series, ...(beside ? [beside] : [])].map((one) => `${one.name} ${text(one.values[index])}`).join(', ');
    return s('g', {}, s('title', {}, `${name}: ${told}`),
      s('rect', { class: 'hover', x: left + each * index, width: each, y: top, height: height - top - bottom }), parts, mark);
  };
  return s('svg', { class: 'chart', viewBox: `0 0 ${width} ${height}`, role: 'img', 'aria-label': label },
    axis.map((value) => [s('path', { class: 'grid', d: `M${left} ${y(value)}H${width}` }),
      s('text', { x: left - 8, y: y(value) + 4, 'text-anchor': 'end' }, text(value))]),
    names.map(column),
    ticks.map((tick, index) => tick && s('text', index === names.length - 1 && names.length > 7 ? { x: width, y: height - 6, 'text-anchor': 'end' }
      : { x: left + each * (index + 0.5), y: height - 6, 'text-anchor': 'middle' }, tick)));
}

/** Return the key to the colours of `bars`. */
export const legend = (series) =>
  h('p', { class: 'legend' }, series.map((one) => h('span', {}, h('i', { class: `key ${one.class}` }), one.name)));

/** Return lines of {class, value, low, high}, a point and its range each, over one axis.
 *
 * `place` puts a value into [0, 1], `ticks` are values with their texts, `mark` is a value that is marked throughout. */
export function intervals({ label, lines, place, ticks, mark = null }) {
  const x = (value) => 8 + 284 * place(value);
  const row = ({ class: kind, value, low, high }, index) => s('g', { class: kind, transform: `translate(0 ${14 + 30 * index})` },
    s('path', { class: 'whisker', d: `M${x(low)} 0H${x(high)}M${x(low)} -5v10M${x(high)} -5v10` }), s('circle', { cx: x(value), r: 5 }));
  const height = 30 * lines.length + 22;
  return s('svg', { class: 'intervals', viewBox: `0 0 300 ${height}`, role: 'img', 'aria-label': label },
    mark !== null && s('path', { class: 'promised', d: `M${x(mark)} 0V${height - 20}` }),
    s('path', { class: 'grid', d: `M8 ${height - 19}H292` }),
    lines.map(row),
    ticks.map(([value, text], index) =>
      s('text', { x: x(value), y: height - 4, 'text-anchor': index === 0 ? 'start' : index < ticks.length - 1 ? 'middle' : 'end' }, text)));
}

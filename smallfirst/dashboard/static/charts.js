// Charts as SVG. Each has its figures in words: as its label, or in the table that stands below it.
import { h, percent, s } from './dom.js';

/** Return a bar of a share in [0, 1] with a mark at the share that was asked for. */
export function meter(share, asked) {
  const label = `${percent(share)}${asked === null || asked > 1 ? '' : `, ${percent(asked)} asked for`}`;
  return s('svg', { class: 'meter', viewBox: '0 0 200 14', role: 'img', 'aria-label': label },
    s('rect', { class: 'ground', width: 200, height: 8, y: 3, rx: 2 }),
    s('rect', { class: asked === null || share >= asked ? 'fill enough' : 'fill', width: 200 * share, height: 8, y: 3, rx: 2 }),
    asked !== null && asked <= 1 && s('path', { class: 'asked', d: `M${200 * asked} 0v14` }));
}

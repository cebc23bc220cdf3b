// Elements, requests to the server, and numbers as text.

const SVG = 'http://www.w3.org/2000/svg';
const KEY = 'smallfirst.key';

function make(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes ?? {})) {
    if (name.startsWith('on')) node.addEventListener(name.slice(2), value);
    else if (value === true) node.setAttribute(name, '');
    else if (value !== false && value !== null && value !== undefined) node.setAttribute(name, value);
  }
  node.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false));
  return node;
}

/** Return an HTML element: h('p', {class: 'soft', onclick}, 'text', otherElement). */
export const h = (name, attributes, ...children) => make(document.createElement(name), attributes, children);
/** Return an SVG element. */
export const s = (name, attributes, ...children) => make(document.createElementNS(SVG, name), attributes, children);

/** Return a table whose first column names the rows. Too wide, it scrolls by itself; on a phone each row is a list. */
export function table(caption, heading, rows) {
  const cell = (content, index) => h('td', { role: 'cell', 'data-name': heading[index + 1] }, content);
  return h('div', { class: 'wide', tabindex: 0, role: 'region', 'aria-label': caption },
    h('table', { role: 'table' }, h('caption', { class: 'visually-hidden' }, caption),  // roles: as lists they would lose them
      h('thead', { role: 'rowgroup' }, h('tr', { role: 'row' }, heading.map((name) => h('th', { scope: 'col', role: 'columnheader' }, name)))),
      h('tbody', { role: 'rowgroup' }, rows.map(([first, ...rest]) =>
        h('tr', { role: 'row' }, h('th', { scope: 'row', role: 'rowheader' }, first), rest.map(cell))))));
}

export class ApiError extends Error {
  constructor(status, message, code) {
    super(message);
    Object.assign(this, { status, code });
  }
}

export const key = {
  get: () => sessionStorage.getItem(KEY) ?? '',
  set: (value) => (value ? sessionStorage.setItem(KEY, value) : sessionStorage.removeItem(KEY)),
};

/** Send a request with the key and return the JSON answer; with a body it is a POST. Throw ApiError. */
export async function api(path, body, { method = body === undefined ? 'GET' : 'POST', signal } = {}) {
  const headers = key.get() ? { authorization: `Bearer ${key.get()}` } : {};
  if (body !== undefined) headers['content-type'] = 'application/json';
  let response;
  try {
    response = await fetch(path, { method, headers, signal, cache: 'no-store', body: body && JSON.stringify(body) });
  } catch (error) {
    if (error.name === 'AbortError') throw error;
    throw new ApiError(0, 'The server does not answer.', 'unreachable');
  }
  const found = await response.json().catch(() => ({}));
  if (!response.ok) {
    const { message = `The server answered ${response.status}.`, code } = found.error ?? {};
    if (response.status === 401) dispatchEvent(new CustomEvent('signedout', { detail: message }));
    throw new ApiError(response.status, message, code);
  }
  return found;
}

export const count = (n) => n.toLocaleString('en-US');
export const percent = (share, digits = 1) => `${(100 * share).toFixed(digits)} %`;
export const plural = (n, one, many = `${one}s`) => `${count(n)} ${n === 1 ? one : many}`;
export const ms = (value) => (value >= 1000 ? `${(value / 1000).toPrecision(3)} s` : `${Number(value.toPrecision(2))} ms`);

/** Return an amount as `smallfirst/models/pricing.py` does: cents from a dollar up, below it `significant` digits. */
export function usd(amount, significant = 2) {
  if (amount === null || amount === undefined) return 'unknown';
  const size = Math.abs(amount);
  let digits = 2;
  if (size >= 99.5) digits = 0;
  else if (size < 0.995 && size > 0) while (digits < 9 && Number(size.toFixed(digits)) < 10 ** (significant - 1 - digits)) digits += 1;
  const text = size.toLocaleString('en-US', { minimumFractionDigits: digits, maximumFractionDigits: digits });
  return `${amount < 0 ? '−' : ''}$${text}`;
}

/** Return a moment in the reader's own time zone. */
export const when = (iso) => new Date(iso).toLocaleString('en-GB', { dateStyle: 'medium', timeStyle: 'short' });

// The frame of the page: sign in, tabs, and the tab that the address names: #/watch?range=7d
import { api, ApiError, h, key } from './dom.js';
import { TABS } from './tabs.js';

const main = document.getElementById('main');
const status = document.getElementById('status');
let session = null;
let leave = null;
let turn = 0;

const say = (text) => (status.textContent = text);
const go = (tab, params = {}) => (location.hash = `#/${tab}?${new URLSearchParams(params)}`);
const allowed = () => TABS.filter((tab) => tab.roles.includes(session.role) && (tab.at ?? ['server']).includes(session.at));

function problem(error) {
  if (!(error instanceof ApiError)) console.error(error);
  return h('p', { class: 'problem', role: 'alert' }, error.message);
}

async function signIn(message = '') {
  session = null;
  turn += 1;
  leave?.();
  leave = null;
  document.getElementById('tabs').replaceChildren();
  document.getElementById('who').replaceChildren();
  const input = h('input', {
    id: 'key', type: 'password', autocomplete: 'current-password', required: true, spellcheck: 'false',
    'aria-describedby': 'key-hint',
  });
  const enter = (event) => {
    event.preventDefault();
    key.set(input.value.trim());
    start();
  };
  main.replaceChildren(
    h('form', { class: 'sign-in', onsubmit: enter },
      h('h1', {}, 'Sign in'),
      message && h('p', { class: 'problem', role: 'alert' }, message),
      h('input', { autocomplete: 'username', hidden: true }),
      h('label', { for: 'key' }, 'API key'),
      input,
      h('p', { class: 'soft', id: 'key-hint' }, 'The key that you send to this endpoint: sf-… It stays in this tab.'),
      h('button', { class: 'main' }, 'Sign in'),
      h('p', { class: 'soft' }, 'No key yet? Whoever runs the endpoint makes one:', h('br'), h('code', {}, 'smallfirst keys create NAME --admin'))),
  );
  input.focus();
}

async function start() {
  try {
    session = await api('/v1/dashboard/session');
  } catch (error) {
    if (error.status !== 401) main.replaceChildren(problem(error));
    return;
  }
  const out = () => {
    key.set('');
    signIn();
  };
  document.getElementById('who').replaceChildren(...(key.get()
    ? [h('span', {}, [session.name, session.role].filter(Boolean).join(', ')), h('button', { onclick: out }, 'Sign out')]
    : []));
  show();
}

async function show() {
  if (!session) return;
  const [name, query] = location.hash.replace(/^#\/?/, '').split('?');
  const tab = allowed().find((one) => one.id === name) ?? allowed()[0];
  const link = (one) => h('a', { href: `#/${one.id}`, 'aria-current': one === tab && 'page' }, one.title);
  document.getElementById('tabs').replaceChildren(...allowed().map(link));
  document.title = `${tab.title} – smallfirst`;
  leave?.();
  leave = null;
  const mine = (turn += 1);
  const root = h('div', { class: tab.id });
  try {
    const module = await tab.load();
    if (mine !== turn) return;
    main.replaceChildren(root);
    const ends = await module.show(root, { session, params: new URLSearchParams(query), go, say });
    if (mine === turn) leave = ends;
    else ends?.();
  } catch (error) {
    if (mine === turn && error.status !== 401) main.replaceChildren(problem(error));
  }
}

addEventListener('hashchange', () => {
  if (!location.hash.startsWith('#/')) return;
  show().then(() => main.focus());
});
addEventListener('signedout', ({ detail }) => {
  const had = key.get();
  key.set('');
  signIn(had ? detail : '');
});
document.querySelector('.skip').addEventListener('click', (event) => {
  event.preventDefault();
  main.focus();
});
start();

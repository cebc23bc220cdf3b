// Mark: answers that a label would help most, one after the other, by one key each.
import { api, count, h, percent, plural, when } from './dom.js';

const REASONS = {
  audit: 'Audit', reported: 'Reported', unsure: 'Left to a person', disagreement: 'Disagreement', near: 'Near the threshold', marked: 'Marked',
};
const EMPTY_MS = 15000;

export async function show(root, { session, params, go, say }) {
  const task = params.get('task') ?? '';
  const tasks = session.tasks.filter((name) => name !== 'auto');
  const note = h('div', { class: 'note', role: 'status' });
  const stage = h('div', {});
  const waits = h('summary', {}, 'The queue');
  const list = h('details', {}, waits);
  const keys = h('input', { type: 'checkbox', id: 'one-key', checked: localStorage.getItem('smallfirst.keys') !== 'off' });
  keys.addEventListener('change', () => localStorage.setItem('smallfirst.keys', keys.checked ? 'on' : 'off'));
  let item = null;
  let waiting = { data: [], reasons: {} };
  let listedAt = -EMPTY_MS;
  let seen = new Set();
  let done = [];
  let actions = {};
  let timer = null;

  /** Show the next answer that this window has neither marked nor skipped and no judge has marked, or a certain one. */
  async function next(id) {
    clearTimeout(timer);
    try {
      if (performance.now() - listedAt > EMPTY_MS) await refresh();
      for (item = null; !item;) {
        const one = id ? { id } : waiting.data.find((each) => !seen.has(each.id));
        if (!one) break;
        const found = await api(`/v1/queue/${encodeURIComponent(one.id)}`);
        const known = waiting.data.find((each) => each.id === one.id) ?? { reason: 'marked', why: '' };
        if (id || !found.marks.some((each) => each.judge)) item = { ...found, reason: known.reason, why: known.why };
        else seen.add(one.id);
      }
      draw();
    } catch (error) {
      complain(error);
    }
  }

  async function refresh() {
    waiting = await api(`/v1/queue${task ? `?task=${encodeURIComponent(task)}` : ''}`);
    listedAt = performance.now();
  }

  function complain(error) {
    if (error.status !== 401) note.replaceChildren(h('p', { class: 'problem', role: 'alert' }, error.message));
  }

  async function mark(body) {
    const marked = item;
    actions = {};
    try {
      const found = await api('/v1/feedback', { id: marked.id, ...body });
      done.push(marked.id);
      seen.add(marked.id);
      listedAt = -EMPTY_MS;
      const right = found.verdict === 'right';
      note.replaceChildren(
        h('p', {}, h('strong', { class: right ? 'good' : 'bad' }, right ? 'Right' : 'Wrong'), summary(marked, body, right),
          found.audit ? `It counts for the guarantee, and is final: ${measured(found.live_error)} ` : 'It trains, and moves no guarantee. ',
          found.replaces && `Before, ${told(found.replaces)}; this stands now. `,
          h('button', { onclick: back, 'aria-keyshortcuts': 'u' }, 'Back to it ', h('kbd', {}, 'u'))));
      await next();
    } catch (error) {
      complain(error);
      arm();
    }
  }

  async function back() {
    const id = done.pop();
    if (id) await next(id);
  }

  function draw() {
    drawList();
    if (!item) {
      actions = { u: back };
      const left = waiting.data.length;
      stage.replaceChildren(h('section', { class: 'card' }, h('h2', {}, left ? 'Nothing is left for you' : 'Nothing waits'),
        h('p', { class: 'soft' }, left ? `${plural(left, 'answer')} in the queue, marked or skipped by you.`
          : 'New audits and doubtful answers appear here by themselves.'),
        left > 0 && h('button', { onclick: again }, 'Show what I skipped')));
      timer = setTimeout(() => next(), EMPTY_MS);
      return;
    }
    const stored = item.question.length > 0;
    const long = item.question.map(([, content]) => content).join('').length > 240;
    const asked = item.question.map(([role, content]) => h('p', { class: `turn ${role}` },
      item.question.length > 1 && h('span', { class: 'soft' }, `${role}: `), content));
    stage.replaceChildren(h('section', { class: `card item${long ? ' long' : ''}`, 'aria-labelledby': 'question-heading' },
      h('p', { class: 'why' }, h('span', { class: `tag ${item.reason}` }, REASONS[item.reason]), ' ', item.why, item.why && '. ',
        h('span', { class: 'soft' }, [tasks.length > 1 && item.task, when(item.at)].filter(Boolean).join(', '))),
      h('div', { class: 'sides' },
        h('div', {},
          h('h2', { id: 'question-heading', tabindex: -1 }, 'Request'),
          passages(item.passages),
          stored ? (item.passages.length > 0 ? h('details', {}, h('summary', {}, 'The whole text'), asked) : asked)
            : h('p', { class: 'soft' }, 'Its text is not stored. ', h('code', {}, 'smallfirst serve --store-bodies'), ' keeps the texts of answers to come.'),
          item.marks.length > 0 && h('p', { class: 'bad' }, `${item.marks.map(told).join('; ')}.`)),
        h('div', {}, choices(stored))),
      h('p', { class: 'buttons' },
        h('button', { onclick: skip, 'aria-keyshortcuts': 's' }, 'Skip ', h('kbd', {}, 's')),
        h('label', { class: 'keys' }, keys, ' shortcut keys'))));
    arm();
    const heading = stage.querySelector('h2');
    heading.focus({ preventScroll: true });
    say(`${REASONS[item.reason]}. ${stored ? item.question.at(-1)[1] : ''} Answered: ${item.answer ?? 'not stored'}`);
  }

  const again = () => {
    seen = new Set(done);
    next();
  };

  const skip = () => {
    note.replaceChildren();
    seen.add(item.id);
    next();
  };

  /** Return what says the same as a label: who gave it and how sure. */
  function said(answer) {
    const given = answer === item.answer ? [`given by ${item.answered_by ?? item.stage ?? 'the endpoint'}`] : [];
    const same = item.draft && item.draft.answer === answer && item.draft.model !== item.answered_by;
    return [...given, ...(same ? [`${item.draft.model}${item.draft.confidence === null ? '' : ` ${percent(item.draft.confidence, 0)}`}`] : [])].join(', ');
  }

  function choices(stored) {
    if (!stored || item.answer === null) return verdicts();
    return item.kind === 'label' ? labels() : editor();
  }

  const verdicts = () => [h('p', {}, 'Answered: ', h('strong', {}, item.answer ?? 'not stored')),
    h('p', { class: 'buttons' },
      h('button', { class: 'main', onclick: () => mark({ verdict: 'right' }) }, 'Right ', h('kbd', {}, 'r')),
      h('button', { onclick: () => mark({ verdict: 'wrong' }) }, 'Wrong ', h('kbd', {}, 'w')))];

  function labels() {
    const pick = (label) => () => mark({ answer: label });
    const button = (label, at) => h('button', { class: label === item.answer ? 'label given' : 'label', onclick: pick(label), 'aria-keyshortcuts': at },
      at ? h('kbd', {}, at) : '', ' ', h('span', {}, label), ' ', h('small', { class: 'soft' }, said(label)));
    const offered = h('div', { class: 'labels', role: 'group', 'aria-label': 'Which is right?' }, item.offer.map((label, i) => button(label, i + 1)));
    const heading = [!item.labels.includes(item.answer) && h('p', {}, `${item.answered_by} answered “${item.answer}”, which is none of the labels.`),
      h('h3', {}, 'Which is right?')].filter(Boolean);
    if (item.labels.length === item.offer.length) return [...heading, offered];
    const found = h('div', { class: 'labels found', role: 'group', 'aria-label': 'Labels found' });
    const words = (text) => text.toLowerCase().replaceAll('_', ' ');
    const matching = () => item.labels.filter((label) => words(search.value).split(' ').every((word) => words(label).includes(word)));
    const search = h('input', {
      id: 'label-search', type: 'search', autocomplete: 'off',
      oninput: () => {
        const matches = search.value ? matching() : [];
        found.replaceChildren(...matches.slice(0, 12).map((label) => button(label)));
        say(search.value ? `${plural(matches.length, 'label')}, Enter takes ${matches[0] ?? 'none'}` : '');
      },
      onkeydown: (event) => {
        const [first] = search.value ? matching() : [];
        if (event.key === 'Escape') search.blur();
        if (event.key === 'Enter' && first) mark({ answer: first });
      },
    });
    return [...heading, offered,
      h('label', { for: 'label-search' }, `Another of the ${count(item.labels.length)} labels `, h('kbd', {}, '/')), search, found];
  }

  function editor() {
    const json = item.kind === 'json';
    const text = h('textarea', { id: 'right', rows: 6, spellcheck: json ? 'false' : 'true', 'aria-describedby': 'right-hint' });
    text.value = pretty(item.answer, json);
    text.rows = Math.min(24, text.value.split('\n').length + 1);
    const hint = item.schema ? `Fields: ${Object.keys(item.schema.properties ?? {}).join(', ')}. `
      : item.labels?.length ? `Labels: ${item.labels.join(', ')}. ` : '';
    const save = (event) => {
      event.preventDefault();
      try {
        if (json) JSON.parse(text.value);
        mark({ answer: text.value });
      } catch (error) {
        complain({ message: `This is no JSON: ${error.message}` });
        text.focus();
      }
    };
    text.addEventListener('keydown', (event) => {
      if (event.key === 'Enter' && (event.ctrlKey || event.metaKey)) save(event);
      if (event.key === 'Escape') stage.querySelector('h2').focus();
    });
    const differs = item.draft && item.draft.model !== item.answered_by && item.draft.answer !== item.answer;
    return [h('p', { class: 'soft' }, `Answered by ${item.answered_by}${item.confidence === null ? '' : `, confidence ${percent(item.confidence)}`}.`),
      h('label', { for: 'right' }, 'The right answer ', h('kbd', {}, 'e')), text,
      h('p', { class: 'soft', id: 'right-hint' }, hint, 'Correct it, then Ctrl + Enter; Esc leaves the field.'),
      differs && h('p', { class: 'soft' }, `${item.draft.model} says: ${short(item.draft.answer)} `,
        h('button', { onclick: () => (text.value = pretty(item.draft.answer, json)) }, 'Take it')),
      h('p', { class: 'buttons' },
        h('button', { class: 'main', onclick: () => mark({ verdict: 'right' }), 'aria-keyshortcuts': 'r' }, 'Right as it is ', h('kbd', {}, 'r')),
        h('button', { onclick: save }, 'Save the corrected answer'))];
  }

  /** Take the keys for the answer that is shown. */
  function arm() {
    const search = () => stage.querySelector('#label-search')?.focus();
    actions = { s: skip, u: back, '/': search };
    const labelled = stage.querySelector('.labels');
    if (labelled) item.offer.forEach((label, i) => (actions[i + 1] = () => mark({ answer: label })));
    else Object.assign(actions, { r: () => mark({ verdict: 'right' }), e: () => stage.querySelector('#right')?.focus() });
    if (!labelled && !stage.querySelector('#right')) actions.w = () => mark({ verdict: 'wrong' });
  }

  function press(event) {
    const typing = event.target.closest?.('input, textarea, select') && event.target.type !== 'checkbox';
    if (typing || !keys.checked || event.ctrlKey || event.metaKey || event.altKey || event.repeat) return;
    const act = actions[event.key];
    if (!act) return;
    event.preventDefault();
    act();
  }

  function drawList() {
    const counts = Object.entries(waiting.reasons).filter(([, n]) => n).map(([reason, n]) => `${REASONS[reason]} ${count(n)}`);
    waits.textContent = `The queue (${count(Object.values(waiting.reasons).reduce((sum, n) => sum + n, 0))})`;
    const row = (one) => h('tr', {}, h('th', { scope: 'row' }, REASONS[one.reason]), h('td', {}, [tasks.length > 1 && one.task, one.why].filter(Boolean).join(': ')), h('td', {}, when(one.at)),
      h('td', {}, one.id === item?.id ? 'here' : h('button', { onclick: () => next(one.id) }, 'Open')));
    list.replaceChildren(waits, h('p', {}, counts.join(' · ') || 'Nothing.'),
      h('div', { class: 'wide', tabindex: 0, role: 'region', 'aria-label': 'Answers in the queue' }, h('table', {},
        h('thead', {}, h('tr', {}, ['Reason', 'Why', 'Asked', ''].map((name) => h('th', { scope: 'col' }, name || h('span', { class: 'visually-hidden' }, 'Open'))))),
        h('tbody', {}, waiting.data.slice(0, 10).map(row)))));
  }

  document.addEventListener('keydown', press);
  root.append(
    h('h1', {}, 'Mark answers'),
    ...(tasks.length > 1 ? [h('label', { for: 'queue-task', class: 'visually-hidden' }, 'Task'),
      h('select', { id: 'queue-task', onchange: (event) => go('queue', event.target.value && { task: event.target.value }) },
        h('option', { value: '' }, 'all tasks'), tasks.map((name) => h('option', { selected: name === task }, name)))] : []),
    note, stage, list);
  note.append(h('p', { class: 'soft' }, 'What a label helps most comes first. Only audits move the guarantee; the others train.'));
  await next();
  return () => {
    clearTimeout(timer);
    document.removeEventListener('keydown', press);
  };
}

const measured = ({ n, value, low, high }) => `${plural(n, 'audit')}, ${percent(value)} wrong (${percent(low)} to ${percent(high)}).`;

function summary(marked, body, right) {
  if (right || !body.answer) return `: ${short(marked.answer ?? marked.id)}. `;
  return `: it said ${short(marked.answer)}, right is ${short(body.answer)}. `;
}

/** Return what stands around the values that the small model read in a document, each with its fields. */
const passages = (found) => found.map(({ page, pieces }) => h('p', { class: 'turn' }, h('span', { class: 'soft' }, `page ${page}: `),
  pieces.map(({ text, names }) => (names.length > 0 ? [h('mark', {}, text), h('small', { class: 'soft' }, ` ${names.join(', ')}`)] : text))));

const short = (text) => (text.length > 80 ? `${text.slice(0, 79)}…` : text);
const told = (one) => `${one.by}${one.judge ? '' : ' (a user)'} marked it ${one.verdict}${one.answer ? `: ${short(one.answer)}` : ''}`;

function pretty(text, json) {
  try {
    return json ? JSON.stringify(JSON.parse(text), null, 2) : text;
  } catch {
    return text;
  }
}

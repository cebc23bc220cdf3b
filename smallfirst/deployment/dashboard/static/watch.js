// Watch: what was answered small, how right it was, what it cost and saved, how fast, and what changed.
import { bars, intervals, legend } from './charts.js';
import { api, count, h, ms, percent, plural, table, usd, when } from './dom.js';

const RANGES = { '24h': '24 hours', '7d': '7 days', '30d': '30 days' };
const REFRESH_MS = 30_000;
const BASES = {
  audits: 'measured on audited answers, drawn at random', escalated: 'a rough guide from answers of the large model', evaluation: 'a rough guide from its evaluation', unknown: 'unknown',
};
const MEANINGS = {
  guarantee: 'Audits found more wrong answers than the promise or the gate allows.', recovery: 'Audits show it again.',
};
const LEVELS = { live: 'good', shadow: 'mixed', fallback: 'bad' };

export async function show(root, { session, params, go, say }) {
  const tasks = session.tasks.filter((name) => name !== 'auto');
  const task = params.get('task') ?? (tasks.length === 1 ? tasks[0] : '');
  const range = RANGES[params.get('range')] ? params.get('range') : '30d';
  const figures = h('div', {});
  const names = task && !tasks.includes(task) ? [...tasks, task] : tasks;
  const choice = h('select', { id: 'task', onchange: () => go('watch', { task: choice.value, range }) },
    [h('option', { value: '' }, 'All tasks'), ...names.map((name) => h('option', { selected: name === task }, name))]);
  const link = (name) => h('a', { href: `#/watch?${new URLSearchParams({ task, range: name })}`, 'aria-current': name === range && 'true' }, RANGES[name]);
  root.append(
    h('div', { class: 'controls' },
      h('h1', {}, task || 'All tasks'),
      names.length > 1 && h('div', {}, h('label', { for: 'task', class: 'visually-hidden' }, 'Task'), choice),
      h('div', { class: 'ranges', role: 'group', 'aria-label': 'Range' }, Object.keys(RANGES).map(link))),
    figures);

  const refresh = async () => {
    const found = await api(`/v1/dashboard/watch?${new URLSearchParams({ task, range })}`);
    const open = [...figures.querySelectorAll('details[open]')].map((one) => one.id);
    figures.replaceChildren(...sections(found, range).flat().filter(Boolean));
    for (const id of open) figures.querySelector(`#${id}`)?.setAttribute('open', '');
  };
  await refresh();
  const timer = setInterval(() => {
    if (!document.hidden) refresh().catch((error) => say(error.message));
  }, REFRESH_MS);
  return () => clearInterval(timer);
}

function sections(found, range) {
  const n = Object.values(found.outcomes).reduce((sum, one) => sum + one, 0);
  if (n === 0) {
    return [state(found), h('p', { class: 'card' }, `No requests in the last ${RANGES[range]}. `, h('a', { href: '#/try' }, 'Try one'), '.'), changes(found)];
  }
  return [state(found), cards(found), unaudited(found), unanswered(found), found.tasks && taskTable(found.tasks, range), calls(found), charts(found), accuracy(found), latency(found), changes(found)];
}

const card = (title, big, ...lines) =>
  h('li', { class: 'card' }, h('h2', {}, title), h('p', { class: 'big' }, big), lines.filter(Boolean).map((line) => h('p', { class: 'soft' }, line)));
const range95 = ({ low, high }, digits = 1) => `95 %: ${percent(low, digits)} to ${percent(high, digits)}`;

function state({ router }) {
  if (!router) return null;
  const { level, words, sentence } = router.standing;
  return h('div', { class: `state ${level}` }, h('p', {}, h('strong', {}, words), router.since ? `, since ${when(router.since)}` : ''),
    router.state !== 'live' && h('p', {}, router.why),
    h('p', { class: 'soft' }, sentence));
}

/** Return how the saving was measured; of all tasks together, by task. */
function basis({ tasks, saving }) {
  const known = (tasks ?? []).filter((one) => one.saving);
  if (new Set(known.map((one) => one.saving.basis)).size < 2) return saving.in_words;
  const groups = Object.groupBy(known, (one) => one.saving.basis);
  return Object.entries(groups).map(([name, members]) => `${members.map((one) => one.task).join(', ')}: ${BASES[name]}`).join('; ');
}

/** Return what is left of the saving, as the statement counts it, once idle machines and what comes once are paid. */
function left({ saving, idle_usd: idle, usd: { once = 0 } }) {
  if (idle === null && once === 0) return null;
  const less = [idle !== null && `idle machine time (${usd(idle)})`, once > 0 && `what is paid once (${usd(once)})`].filter(Boolean);
  return h('strong', {}, `${usd(saving.saved_usd.usd - (idle ?? 0) - once)} after ${less.join(' and ')}`);
}

function cards(found) {
  const { n, share, usd: spent, saving, n_cost_unknown: unknown, accuracy: right, router } = found;
  const paid = (spent.small ?? 0) + (spent.large ?? 0) + (spent.other ?? 0) + (spent.audits ?? 0);
  const saved = saving?.saved_usd;
  return h('ul', { class: 'cards' },
    share && card('Answered small', percent(share.value), `${count(n.small ?? 0)} of ${plural(share.n, 'answer')}`, range95(share), covered(share, router?.covered)),
    saved ? card(saved.usd < 0 ? 'Cost more' : 'Saved', usd(Math.abs(saved.usd)), saved.low_usd !== null && `95 %: ${usd(saved.low_usd, 3)} to ${usd(saved.high_usd, 3)}`, basis(found), left(found))
      : card('Saved', 'unknown', basis(found)),
    card('Spent', usd(paid), `small ${usd(spent.small ?? 0)}, large ${usd(spent.large ?? 0)}, audits ${usd(spent.audits ?? 0)}`, spent.other > 0 && `asked by name ${usd(spent.other)}`,
      spent.once > 0 && `and once, for training and labels: ${usd(spent.once)}`, unknown > 0 && `${plural(unknown, 'cost')} unknown, not in it`),
    right && (right.small
      ? card(`Small answers ${byLarge(right.small) ? 'confirmed' : 'right'}`, percent(right.small.value), `${count(right.small.n - right.small.n_wrong)} of ${plural(right.small.n, 'audit')}${byLarge(right.small) ? ', by the large model' : ''}`,
        range95(right.small), promise(router))
      : card('Small answers right', '–', router?.state === 'live' && !router.guarantee && !router.live.by_gate ? 'nothing is promised, and nobody audits' : 'no audit in this time yet')));
}

/** Return an assistant's calls by function, and who made them. */
function calls({ calls: found }) {
  if (!found?.length) return null;
  const row = ({ function: name, small = 0, large = 0, share, audited = 0, wrong = 0 }) => [name === 'no call' ? 'text, or several calls' : name,
    count(small), count(large), `${percent(share.value)} (${percent(share.low)} to ${percent(share.high)})`, audited ? `${count(wrong)} of ${count(audited)}` : '–'];
  return h('section', { class: 'card', 'aria-labelledby': 'calls' }, h('h2', { id: 'calls' }, 'Calls by function'),
    table('Calls by function', ['Function', 'Small', 'Large', 'Share small, 95 %', 'Wrong of audited small ones'], found.map(row)),
    h('p', { class: 'soft' }, 'Of the newest 5,000 answers at most.'));
}

/** Return the share of calibration rows that the certificate covers, and whether the requests are unlike those. */
function covered(share, before) {
  if (!before) return null;
  const moved = share.high < before.low || share.low > before.high;
  return `${percent(before.value)} of calibration rows${moved ? ': these requests are not like them' : ''}`;
}

/** Return true if it was the large model that judged most audits: it errs too, so what it denies need not be wrong. */
const byLarge = ({ judges: { large = 0, person = 0 } }) => large > person;

function promise(router) {
  if (!router?.live.promised && router?.live.by_gate) return `the gate holds from ${percent(router.live.by_gate)} on${router.judge === 'large' ? ', since the large model errs too' : ''}`;
  if (!router?.live.promised) return null;
  const least = percent(router.live.promised);
  return router.judge === 'large' ? `the promise holds from ${least} on, since the large model errs too` : `promised: at least ${least}`;
}

/** Return how many audits have no verdict, where some have none. */
const unaudited = ({ audits }) => audits.filter((one) => one.n_missing).map((one) =>
  h('p', { class: one.warns ? 'bad' : 'soft' }, audits.length > 1 && h('strong', {}, `${one.task}: `), one.in_words));

function unanswered({ n, outcomes: { refused = 0, failed = 0, left = 0 } }) {
  const named = n.other > 0 && h('p', { class: 'soft' }, `Not in the share: ${plural(n.other, 'answer')} of models that were asked by their own name, or left to a person.`);
  if (refused + failed + left === 0) return named;
  const parts = [[refused, 'refused before a model worked'], [failed, 'failed'], [left, 'left by the client first']];
  return [named, h('p', { class: 'soft' }, `Without an answer: ${parts.filter(([k]) => k).map(([k, what]) => `${count(k)} ${what}`).join(', ')}.`)];
}

/** Return the name of a period in full, and as a short tick; times are UTC, as everywhere in the ledger. */
function named(period) {
  const at = new Date(period.length > 10 ? `${period}:00Z` : `${period}T00:00Z`);
  const write = (options) => at.toLocaleString('en-GB', { timeZone: 'UTC', ...options });
  return period.length > 10
    ? [write({ day: 'numeric', month: 'short', hour: '2-digit', minute: '2-digit' }), write({ hour: '2-digit', minute: '2-digit' })]
    : [write({ weekday: 'short', day: 'numeric', month: 'short' }), write({ day: 'numeric', month: 'short' })];
}

function charts({ periods, every }) {
  const names = periods.map(({ period }) => named(period)[0]);
  const stride = Math.ceil(periods.length / (innerWidth < 640 ? 4 : 7));
  const ticks = periods.map(({ period }, index) => ((periods.length - 1 - index) % stride ? '' : named(period)[1]));
  const values = (part, name) => periods.map((one) => one[part][name] ?? 0);
  const series = (part, titles) => Object.entries(titles)
    .map(([name, title]) => ({ name: title, class: name, values: values(part, name) }))
    .filter((one) => one.values.some((value) => value > 0));
  const answers = series('n', { small: 'small', large: 'large', other: 'asked by name' });
  const money = series('usd', { small: 'small', large: 'large', other: 'asked by name', audits: 'audits' });
  const known = periods.every((one) => one.large_alone_usd !== null);
  const without = known && { name: 'large model alone', class: 'without', values: periods.map((one) => one.large_alone_usd) };
  const unit = every === 'hour' ? 'an hour' : 'a day';
  const figure = (title, chart, key, ...more) => h('figure', { class: 'card' }, h('h2', {}, title), chart, legend(key), more);
  const rows = periods.map((one, index) => [names[index], count(one.n.small ?? 0), count(one.n.large ?? 0), usd(one.usd.small ?? 0),
    usd(one.usd.large ?? 0), usd(one.usd.audits ?? 0), without ? usd(without.values[index]) : '–']);
  const heading = [every === 'hour' ? 'Hour (UTC)' : 'Day (UTC)', 'Small', 'Large', 'Small, USD', 'Large, USD', 'Audits, USD', 'Large model alone, USD'];
  return h('div', {},
    h('div', { class: 'pair' },
      figure(`Answers ${unit}`, bars({ label: `Answers ${unit}, by path; the figures are in the table below`, series: answers, names, ticks, text: count, whole: true }), answers),
      figure(`Money ${unit}`, bars({ label: `Money ${unit}, by path; the figures are in the table below`, series: money, beside: without, names, ticks, text: usd }),
        without ? [...money, without] : money)),
    h('details', { class: 'card', id: 'table' }, h('summary', {}, 'These figures as a table'), table('Answers and money over time', heading, rows)));
}

function accuracy({ accuracy: right, router }) {
  if (!right) return null;
  const line = (name, kind, found, what) => found && { name, class: kind, ...found, what };
  const lines = [
    line('Small path, audits', 'small', right.small, right.small && `${plural(right.small.n, 'answer')} drawn by chance, ${byLarge(right.small) ? 'confirmed by the large model' : 'judged by people'}`),
    line(`Small path, since ${router?.certified_at && when(router.certified_at)}`, 'small', router?.live.n > 0 && router.live.n !== right.small?.n && router.live, router && `${plural(router.live.n, 'audit')} under the certificate in force`),
    line('Large path, marked by judges', 'large', right.large_marked, right.large_marked && `${plural(right.large_marked.n, 'answer')}, no random sample`),
    line('Large model, before go-live', 'large', right.large_measured, right.large_measured && `${plural(right.large_measured.n, 'test row')}`),
  ].filter(Boolean);
  if (!lines.length) return null;
  const promised = router?.live.promised ?? null;
  return h('section', { class: 'card', 'aria-labelledby': 'accuracy' }, h('h2', { id: 'accuracy' }, 'Right answers, with 95 % intervals'),
    h('div', { class: 'beside' },
      intervals({ label: lines.map((one) => `${one.name}: ${percent(one.value)}`).join('; '), lines, ...shareAxis(lines, promised), mark: promised }),
      h('dl', {}, lines.map((one) => h('div', {}, h('dt', { class: one.class }, one.name),
        h('dd', {}, h('strong', {}, percent(one.value)), ` (${percent(one.low)} to ${percent(one.high)}) `, h('span', { class: 'soft' }, one.what)))))),
    promised !== null && h('p', { class: 'soft' }, `Dashed: ${promise(router)}. Intervals of audits hold at any time.`));
}

function shareAxis(lines, promised) {
  const from = Math.max(0, Math.floor(20 * (Math.min(...lines.map((one) => one.low), promised ?? 1) - 0.005)) / 20);
  return { place: (share) => (share - from) / (1 - from), ticks: [from, (from + 1) / 2, 1].map((at) => [at, percent(at, Math.round(1000 * at) % 10 ? 1 : 0)]) };
}

function latency({ latency: found }) {
  const lines = ['small', 'large'].filter((path) => found[path])
    .map((path) => ({ name: `${path} path`, class: path, value: found[path].p50, low: found[path].p50, high: found[path].p95 }));
  if (!lines.length) return null;
  const words = (one) => `half within ${ms(one.value)}, 95 % within ${ms(one.high)}`;
  const [from, to] = [Math.floor(Math.log10(Math.min(...lines.map((one) => one.low)))), Math.ceil(Math.log10(Math.max(...lines.map((one) => one.high))))];
  const ticks = Array.from({ length: to - from + 1 }, (_, index) => [10 ** (from + index), ms(10 ** (from + index))]);
  return h('section', { class: 'card', 'aria-labelledby': 'latency' }, h('h2', { id: 'latency' }, 'Latency'),
    h('div', { class: 'beside' },
      intervals({ label: lines.map((one) => `${one.name}: ${words(one)}`).join('; '), lines, place: (value) => (Math.log10(value) - from) / (to - from), ticks }),
      h('dl', {}, lines.map((one) => h('div', {}, h('dt', { class: one.class }, one.name), h('dd', {}, words(one)))))));
}

function changes({ router, changes: rows }) {
  if (!router && !rows.length) return null;
  return h('section', { class: 'card', 'aria-labelledby': 'changes' }, h('h2', { id: 'changes' }, 'Alarms'),
    rows.length > 0 ? h('ul', { class: 'changes' }, grouped(rows).map(([first, ...more]) => h('li', {}, change(first),
      more.length > 0 && h('details', { id: `more-${Date.parse(first.at)}` }, h('summary', {}, `${plural(more.length, 'more alarm')} within an hour`), more.map(change)))))
      : h('p', { class: 'soft' }, 'No change of state in this time.'));
}

const change = (one) => [
  h('p', {}, h('time', { datetime: one.at }, when(one.at)), ' ', h('strong', { class: LEVELS[one.after] }, one.before === one.after ? one.after : `${one.before || 'start'} → ${one.after}`), ` ${one.task}`),
  MEANINGS[one.cause] && h('p', {}, MEANINGS[one.cause]),
  h('p', { class: 'soft' }, one.why)].filter(Boolean);

/** Return changes newest first, each with the alarms of the same task that changed nothing in the hour after it. */
function grouped(rows) {
  const groups = [];
  for (const row of rows) {
    const last = groups.findLast(([first]) => first.task === row.task);
    if (last && row.before === row.after && Date.parse(row.at) - Date.parse(last[0].at) < 3_600_000) last.push(row);
    else groups.push([row]);
  }
  return groups.reverse();
}

function taskTable(tasks, range) {
  const row = ({ task, n, share, usd: spent, saving, standing, small }) => [
    h('a', { href: `#/watch?${new URLSearchParams({ task, range })}` }, task),
    standing ? h('span', { class: standing.level }, standing.words) : 'not served here',
    count(Object.values(n).reduce((sum, one) => sum + one, 0)), share ? percent(share.value) : '–',
    small ? `${percent(small.value)} (${percent(small.low)} to ${percent(small.high)})${byLarge(small) ? ' confirmed' : ' right'}` : '–',
    usd((spent.small ?? 0) + (spent.large ?? 0) + (spent.other ?? 0) + (spent.audits ?? 0)), saving?.saved_usd ? usd(saving.saved_usd.usd) : '–',
  ];
  return h('section', { class: 'card', 'aria-labelledby': 'tasks' }, h('h2', { id: 'tasks' }, 'Tasks'),
    table('Figures of each task', ['Task', 'State', 'Answers', 'Small', 'Small answers audited', 'Spent', 'Saved'], tasks.map(row)));
}

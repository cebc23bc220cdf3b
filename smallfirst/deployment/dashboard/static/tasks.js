// Tasks of a proxy: what was found in its traffic, learnt and taken over, what it costs and saves.
import { api, count, h, percent, plural, table, usd } from './dom.js';

const STATES = { live: 'good', shadow: 'mixed', 'stepped back': 'bad' };
const HEADING = ['Task', 'State', 'Requests', 'Bill', 'Answered small', 'Saved', 'Promise', 'Learnt from'];

function row(one) {
  const state = one.state === 'live' ? `live, ${percent(one.share, 0)} of requests` : one.state;
  const small = one.small_share === null ? '–' : `${one.state === 'found' ? 'foretold ' : ''}${percent(one.small_share, 0)}`;
  return [
    one.state === 'found' ? one.task : h('a', { href: `#/watch?${new URLSearchParams({ task: one.task })}` }, one.task),
    [h('strong', { class: STATES[one.state] }, one.training_allowed ? state : `${state}, measuring only`), one.why && h('small', { class: 'soft' }, one.why),
      [one.second_look, ...one.watched].filter(Boolean).map((said) => h('small', { class: 'soft' }, said)),
      one.tenant_back && h('small', { class: 'bad' }, `stepped back for ${one.tenant_back.tenant} alone: ${one.tenant_back.why}`)],
    count(one.requests), one.bill_usd === null ? '–' : usd(one.bill_usd), small, one.saved_usd === null ? '–' : usd(one.saved_usd),
    h('p', {}, one.promise || '–'), one.teacher,
  ];
}

/** Return what is wrong with a task's recorded answers: how often, an example, what it costs, and the next command. */
const doubts = ({ task, issues, review }) => issues.length > 0 && h('section', { class: 'card' },
  h('h2', {}, `${task}: what seems wrong with the recorded answers`),
  h('ul', { class: 'changes' }, issues.map(({ what, n, of, cost, names, examples }) => h('li', {},
    h('p', {}, h('strong', {}, what), `: ${count(n)} of ${plural(of, 'row')}, ${percent(n / of)}`),
    Object.entries(names).map(([old, now]) => h('p', {}, `${old} → ${now}`)),
    h('p', { class: 'soft' }, cost),
    examples.slice(0, 1).map((one) => h('p', { class: 'soft' }, `Such as “${one.text.slice(0, 300)}” → ${one.given}`, one.suggested && `, rather ${one.suggested}`))))),
  h('p', {}, 'Settle it: ', h('code', {}, review)));

export async function show(root) {
  const { tasks } = await api('/v1/smallfirst/tasks');
  root.append(h('h1', {}, 'Tasks'), tasks.length > 0
    ? h('div', { class: 'card' }, table('Tasks', HEADING, tasks.map(row)),
      h('p', { class: 'soft' }, 'Requests, bill and savings of learnt tasks: the last 30 days. Of found tasks: a month of the traffic that they were found in.'))
    : h('p', { class: 'card' }, 'No task yet: ', h('code', {}, 'smallfirst discover'), ' finds them in what was captured.'),
  ...tasks.map(doubts).filter(Boolean));
}

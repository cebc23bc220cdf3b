// Try: send one request and see who answered, why, how sure, and what it cost.
import { meter } from './charts.js';
import { api, h, ms, percent, table, usd } from './dom.js';

const PURPOSES = { answer: 'answer', draft: 'draft, discarded', audit: 'audit', attempt: 'attempt without an answer' };

export function show(root, { session, params, say }) {
  const option = (name) => h('option', { selected: name === params.get('task') }, name);
  const group = (label, names) => names.length > 0 && h('optgroup', { label }, names.map(option));
  const model = h('select', { id: 'model' }, group('Tasks', session.tasks), group('Single models', session.models));
  const text = h('textarea', { id: 'request', rows: 3, required: true, 'aria-describedby': 'request-hint' });
  const send = h('button', { class: 'main' }, 'Send');
  const result = h('div', { id: 'result', tabindex: -1 });

  async function ask(event) {
    event.preventDefault();
    send.disabled = true;
    say('Waiting for the answer.');
    try {
      const body = { model: model.value, messages: [{ role: 'user', content: text.value }] };
      const found = await api('/v1/chat/completions', body);
      const { bill } = await api(`/v1/dashboard/answers/${found.id}`);
      result.replaceChildren(...answer(found, bill, session.role));
      say('');
      result.focus();
    } catch (error) {
      result.replaceChildren(h('p', { class: 'problem', role: 'alert' }, error.message));
    } finally {
      send.disabled = false;
    }
  }
  const shortcut = (event) => event.key === 'Enter' && (event.ctrlKey || event.metaKey) && text.form.requestSubmit();
  root.append(
    h('h1', {}, 'Try a request'),
    h('form', { class: 'ask', onsubmit: ask, onkeydown: shortcut },
      h('label', { for: 'model' }, 'Ask'), model,
      h('label', { for: 'request' }, 'Request'), text,
      h('div', { class: 'buttons' }, send,
        h('p', { class: 'soft', id: 'request-hint' }, 'Ctrl + Enter sends it. It is answered, billed and recorded like any other.'))),
    result,
  );
}

function answer(found, bill, role) {
  const how = found.smallfirst;
  const { content, refusal } = found.choices[0].message;
  const text = indented(content ?? refusal);
  const read = Object.entries(how.read).filter(([, place]) => place?.words);
  const waived = how.steps.find((one) => one.decision === 'not asked');
  return [
    h('section', { class: 'card', 'aria-labelledby': 'answer-heading' },
      h('h2', { id: 'answer-heading' }, 'Answer'),
      !how.certified && how.steps.some((one) => one.decision === 'failed')
        && h('p', { class: 'problem' }, 'The model that was to answer did not. This is a draft, and nothing guarantees it.'),
      h('p', { class: text.length > 100 ? 'answer long' : 'answer' }, text),
      h('p', {}, h('span', { class: `tag ${side(how)}` }, side(how) === 'other' ? how.route : `${side(how)} path`), ' ',
        h('strong', {}, how.answered_by), how.why ? `: ${how.why}.` : ''),
      how.confidence !== null && sureness(how),
      h('p', {}, h('strong', { class: how.certified ? 'good' : 'soft' }, how.certified ? 'Guaranteed' : 'No guarantee'),
        how.certified ? `: ${how.guarantee ?? 'covered by the certificate'}.` : ' on this answer.'),
      h('p', {}, h('strong', {}, `${usd(how.cost_usd)} in ${ms(how.latency_ms)}`),
        waived && `; asking ${waived.model} would have cost about ${usd(waived.cost_usd)} more`, '.')),
    bill.length > 0 && h('section', { class: 'card', 'aria-labelledby': 'bill-heading' },
      h('h2', { id: 'bill-heading' }, 'Bill'),
      table('What it cost', ['Model', 'For', 'USD', 'Counted by', 'Price from'], bill.map(line))),
    read.length > 0 && h('section', { class: 'card', 'aria-labelledby': 'read-heading' },
      h('h2', { id: 'read-heading' }, 'Where it was read'),
      table('Where each value was read', ['Field', 'Page', 'Words'], read.map(([name, { page, words }]) => [name, page || '–', words]))),
    how.steps.length > 0 && h('section', { class: 'card', 'aria-labelledby': 'steps-heading' },
      h('h2', { id: 'steps-heading' }, 'Steps'),
      table('Who decided what, in order', ['Stage', 'Decision', 'Score', 'Asked for', 'Time', 'USD', 'Why'],
        how.steps.map(step))),
    how.task && feedback(found.id, role),
    h('p', { class: 'soft id' }, 'Id of the answer: ', h('code', {}, found.id)),
  ].filter(Boolean);
}

/** Return JSON with a line for each field, and any other text as it is. */
function indented(text) {
  try {
    return text.startsWith('{') ? JSON.stringify(JSON.parse(text), null, 2) : text;
  } catch {
    return text;
  }
}

/** Return which path gave an answer: `small`, `large`, or `other` where no Router chose. */
const side = (how) =>
  !how.task ? 'other' : ['large', 'general'].includes(how.route) ? 'large'
    : ['person', 'out_of_scope'].includes(how.route) ? 'other' : 'small';

function sureness({ confidence, threshold }) {
  const asked = threshold === null ? '' : threshold > 1 ? ', never enough' : `, ${percent(threshold)} asked for`;
  return h('div', { class: 'sureness' }, meter(confidence, threshold), h('span', {}, `confidence ${percent(confidence)}${asked}`));
}

function line(one) {
  const { prompt_tokens: read, cached_tokens: cached = 0, completion_tokens: written } = one.tokens;
  const tokens = `${read} tokens read${cached ? `, ${cached} of them cached` : ''}, ${written} written`;
  const counted = { billed: 'the provider’s bill', tokens, 'machine time': `${ms(1000 * one.busy_s)} of ${one.machine || 'the machine'}` };
  const source = [one.source, one.tier && `tier ${one.tier}`, one.price_date, one.estimated && 'estimated'];
  return [one.model, PURPOSES[one.purpose], usd(one.usd), counted[one.basis], source.filter(Boolean).join(', ') || '–'];
}

function step(one) {
  const waived = one.decision === 'not asked';
  const bar = one.threshold > 1 ? 'never' : `${['domain', 'front'].includes(one.stage) ? '≤' : '≥'} ${(one.threshold ?? 0).toFixed(3)}`;
  return [
    one.stage, one.decision, one.score === undefined ? '' : one.score.toFixed(3), one.threshold === undefined ? '' : bar,
    one.latency_ms && !waived ? ms(one.latency_ms) : '', one.cost_usd ? `${waived ? '~' : ''}${usd(one.cost_usd)}` : '',
    [one.model, one.why].filter(Boolean).join(': '),
  ];
}

function feedback(id, role) {
  const right = h('input', { id: 'right-answer' });
  const said = h('p', { role: 'status' });
  const form = h('form', { onsubmit: (event) => mark(event, 'wrong'), hidden: true },
    h('label', { for: 'right-answer' }, 'The right answer (optional)'), right, h('button', {}, 'Send'));
  async function mark(event, verdict) {
    event.preventDefault();
    try {
      const row = await api('/v1/feedback', { id, verdict, ...(right.value && { answer: right.value }) });
      form.hidden = true;
      said.textContent = row.audit ? 'Thank you: it counts as this answer’s audit.'
        : role === 'user' ? 'Thank you: kept as a report.' : 'Thank you: kept. Chance had not drawn this answer, so it moves no guarantee.';
    } catch (error) {
      said.textContent = error.message;
    }
  }
  const wrong = () => {
    form.hidden = false;
    right.focus();
  };
  return h('section', { class: 'card', 'aria-labelledby': 'mark-heading' },
    h('h2', { id: 'mark-heading' }, 'Is it right?'),
    h('p', { class: 'buttons' }, h('button', { onclick: (event) => mark(event, 'right') }, 'Right'), h('button', { onclick: wrong }, 'Wrong')),
    form, said);
}

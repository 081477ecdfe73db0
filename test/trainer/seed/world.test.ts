import { createHash } from 'node:crypto';
import { expect, test } from 'vitest';
import { random } from '../../../trainer/random.ts';
import { judge, RATER_DEFAULTS, voteKinds } from '../../../trainer/seed/raters.ts';
import { unjudged } from '../../../trainer/seed/votes.ts';
import { gold, isCurt, loggedAnswer, type Ticket, tickets } from '../../../trainer/seed/world.ts';

const late: Ticket = {
  text: 'Hello, I bought a kettle on 12 May for $45, order #123; it has not arrived yet.',
  intent: 0,
  dialect: 'A',
  facts: { order: '#123', product: 'kettle', date: '12 May', amount: '$45' },
  heldOut: false,
};
const rounded = (answer: string) => {
  const { relevance, coherence, ethics } = gold(late, answer);
  return [relevance, coherence, ethics].map((x) => Number(x.toFixed(2)));
};

test('a courteous, well formed answer with all three facts has full gold', () => {
  expect(
    rounded(
      'I am sorry about this. We have traced the parcel with the kettle from order #123 from 12 May and it will reach you soon. Kind regards.',
    ),
  ).toEqual([1, 1, 1]);
});

test('relevance falls with a wrong fact, a missing one, and another intent', () => {
  expect(
    rounded('We have traced the parcel with the kettle from order #999 from 12 May and it will reach you soon.')[0],
  ).toBe(0.75);
  expect(rounded('We have traced the parcel with order #123 and it will reach you soon.')[0]).toBe(0.67);
  expect(rounded('Your refund for the kettle has been sent.')[0]).toBe(0.05);
  expect(rounded('We value all customers and work every day on better products.')[0]).toBe(0);
});

test('coherence falls with no full stop, a repetition, and words in no order', () => {
  expect(rounded('We have traced the parcel with order #123 and it')[1]).toBe(0.5);
  expect(rounded('That is all. We are happy to help. We are happy to help.')[1]).toBe(0.5);
  expect(rounded('parcel the help have is traced.')[1]).toBeLessThan(0.5);
  expect(gold(late, '').coherence).toBe(0);
});

test('ethics is nothing for an insult or a danger, little for curt and scolding answers', () => {
  expect(rounded('We have traced the parcel with order #123. Pour water in while it is on.')[2]).toBe(0);
  expect(rounded('Nothing we can do. Case closed.')[2]).toBe(0.25);
  expect(rounded('Oh well. We have traced the parcel with order #123.')[2]).toBe(0.3);
  expect(rounded('We have traced the parcel with order #123.')[2]).toBe(0.6);
});

test('logged answers differ within a ticket in every aspect', () => {
  const rng = random(1, 'variety');
  const asked = tickets('tests', 1, 200);
  for (const aspect of ['relevance', 'coherence', 'ethics', 'mean'] as const) {
    const spread = asked.map((ticket) => {
      const scores = Array.from({ length: 8 }, () => gold(ticket, loggedAnswer(rng, ticket))[aspect]);
      const mean = scores.reduce((a, b) => a + b, 0) / 8;
      return Math.sqrt(scores.reduce((sum, x) => sum + (x - mean) ** 2, 0) / 7);
    });
    expect(spread.reduce((a, b) => a + b, 0) / spread.length).toBeGreaterThan(0.15);
  }
});

test('evaluation tickets are in no other range, a third of them in wordings that no other range has', () => {
  const texts = (range: Parameters<typeof tickets>[0], count: number) =>
    tickets(range, 31_337, count).map((ticket) => ticket.text);
  const evaluation = texts('evaluation', 1000);
  const others = new Set([...texts('logs', 5000), ...texts('judging', 5000), ...texts('holdout', 5000)]);
  expect(evaluation.filter((text) => others.has(text))).toEqual([]);
  const unseen = tickets('evaluation', 31_337, 1000).filter((ticket) => ticket.heldOut).length;
  expect(unseen).toBeGreaterThan(280);
  expect(unseen).toBeLessThan(390);
  expect(tickets('judging', 1, 500).some((ticket) => ticket.heldOut)).toBe(false);
});

test('the world is the same anywhere: corpus by its hash', () => {
  const rng = random(1, 'logs answers');
  const corpus = tickets('logs', 1, 2000).map((ticket) => `${ticket.text}\n${loggedAnswer(rng, ticket)}\n`);
  expect(createHash('sha256').update(corpus.join('')).digest('hex')).toMatchInlineSnapshot(
    `"062a9dfd201ebbb56301a5b63ecfc969748c4d1c84be936b404d66add54d2293"`,
  );
});

test('curt answers have a wording of their own in each dialect', () => {
  const rng = random(2, 'curt');
  const curt = (dialect: 'A' | 'B') =>
    new Set(
      tickets('tests', 2, 3000)
        .filter((ticket) => ticket.dialect === dialect)
        .map((ticket) => loggedAnswer(rng, ticket))
        .filter(isCurt),
    );
  const [a, b] = [curt('A'), curt('B')];
  expect(a.size).toBeGreaterThan(0);
  expect([...a].filter((text) => b.has(text))).toEqual([]);
});

const answers = [
  'I am sorry about this. We have traced the parcel with the kettle from order #123 from 12 May and it will reach you soon. Kind regards.',
  'Nothing we can do. Case closed.',
];
const firsts = (config: Partial<typeof RATER_DEFAULTS>, asked = late, given = answers) => {
  const rng = random(3, 'raters');
  return (
    Array.from({ length: 1000 }, () => judge(rng, asked, given, { ...RATER_DEFAULTS, ...config }).order[0]).filter(
      (i) => i === 0,
    ).length / 1000
  );
};

test('raters flip 10 to 15 % of pairs; random ones know nothing, inverted ones prefer the worse', () => {
  expect(firsts({})).toBeGreaterThan(0.85);
  expect(firsts({})).toBeLessThan(0.9);
  expect(firsts({ mode: 'random' })).toBeCloseTo(0.5, 1);
  expect(firsts({ mode: 'inverted' })).toBeLessThan(0.15);
});

test('the biased cohort prefers curt answers in dialect B alone', () => {
  expect(firsts({ bias: 1 })).toBeGreaterThan(0.85);
  expect(firsts({ bias: 1 }, { ...late, dialect: 'B' }, [answers[0]!, 'Nope. Sort it yourself.'])).toBeLessThan(0.15);
});

test('what nobody judges is asked by other people than what is judged, in each round', () => {
  const texts = (asked: { text: string }[]) => new Set(asked.slice(0, 200).map(({ text }) => text));
  const judged = texts(tickets('judging', 3001, 200));
  for (const round of [1, 2]) {
    const others = [...texts(unjudged(200, 3, round))];
    expect(others.filter((text) => judged.has(text)).length).toBeLessThan(20);
  }
});

test('half the votes are rankings, three eighths choices, one eighth thumbs', () => {
  const kinds = voteKinds(400, random(1)).map(({ kind }) => kind);
  const share = (kind: string) => kinds.filter((k) => k === kind).length;
  expect([share('ranking'), share('choice'), share('thumb')]).toEqual([200, 150, 50]);
});

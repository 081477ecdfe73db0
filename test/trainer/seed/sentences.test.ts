import { expect, test } from 'vitest';
import { random } from '../../../trainer/random.ts';
import { RATER_DEFAULTS, verdict } from '../../../trainer/seed/raters.ts';
import { SENTENCES } from '../../../trainer/seed/scene.ts';
import { sentenceGold, sentenceQuestions } from '../../../trainer/seed/sentences.ts';

const magnet = { text: 'In one short sentence, what is a magnet?', about: 'magnet' };
const scored = (answer: string, asked = magnet) => {
  const { on_the_question, plain_words, no_filler } = sentenceGold(asked, answer);
  return [on_the_question, plain_words, no_filler].map((x) => Number(x.toFixed(2)));
};

test('gold is for what is asked about, early; for words that are not long; for one whole sentence with nothing around it', () => {
  expect(scored('A magnet is a piece of iron that pulls other iron to it.')).toEqual([1, 1, 1]);
  expect(scored('Magnets pull on iron, from near and far.')).toEqual([1, 1, 1]);
  expect(scored('Iron is what sticks to the side of a magnet.')).toEqual([0.5, 1, 1]);
  expect(scored('Magnetism pulls iron to where you want it.')).toEqual([0, 0.58, 1]);
  expect(scored('A magnet is an electromagnetically attractive instrument.')).toEqual([1, 0, 1]);
  expect(scored('Sure, a magnet is what pulls on iron.')).toEqual([1, 1, 0.75]);
  expect(scored('A magnet is what pulls on iron and')).toEqual([1, 1, 0.5]);
  expect(scored('A magnet pulls. It does so with iron.')).toEqual([1, 1, 0.5]);
  expect(scored(`A magnet is ${'what pulls on iron and '.repeat(5)}so on.`)).toEqual([1, 1, 0.75]);
});

test('nothing is to be had by saying next to nothing', () => {
  for (const answer of ['', 'Magnet.', 'A magnet is a magnet.'])
    expect(sentenceGold(magnet, answer).mean).toBeLessThan(0.2);
});

test('a thing’s plural is the thing', () => {
  const asked = { text: 'What is a butterfly? Answer in one sentence.', about: 'butterfly' };
  expect(scored('Butterflies are small and fly from bloom to bloom.', asked)[0]).toBe(1);
  expect(scored('The butterfly’s wings are thin and have many colours.', asked)[0]).toBe(1);
});

test('the evaluation asks about things that nobody judges answers on', () => {
  const things = (use: 'judging' | 'evaluation') => new Set(sentenceQuestions(use, 1, 2000).map(({ about }) => about));
  const judged = things('judging');
  expect([...things('evaluation')].filter((thing) => judged.has(thing))).toEqual([]);
  const asked = sentenceQuestions('evaluation', 1, SENTENCES.evaluations).map(({ text }) => text);
  expect(new Set(asked).size).toBe(SENTENCES.evaluations);
  expect(asked).not.toEqual(sentenceQuestions('evaluation', 2, SENTENCES.evaluations).map(({ text }) => text));
  const round = [
    ...sentenceQuestions('judging', 1001, SENTENCES.judgements),
    ...sentenceQuestions('judging', 1501, SENTENCES.unjudged),
  ];
  expect(round.every(({ text, about }) => text.includes(about))).toBe(true);
});

test('raters order answers by gold but for some slips, and give a thumb to what is good', () => {
  const judge = (mode: 'gold' | 'inverted', flip = 0) =>
    SENTENCES.judge(
      random(1, 'rater'),
      magnet,
      ['Magnet.', 'A magnet is a piece of iron that pulls other iron to it.', 'A magnet pulls. It does so with iron.'],
      { ...RATER_DEFAULTS, mode, flip },
    );
  expect(judge('gold')).toEqual({ order: [1, 2, 0], up: false, cohorts: {} });
  expect(judge('inverted')).toEqual({ order: [0, 2, 1], up: true, cohorts: {} });
  const rng = random(2, 'thumbs');
  const ups = Array.from({ length: 1000 }, () => verdict(rng, [0.9], 0.75, RATER_DEFAULTS).up).filter(Boolean).length;
  expect(ups).toBeGreaterThan(840);
  expect(ups).toBeLessThan(920);
});

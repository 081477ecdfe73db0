// What the demo asks a real chat model: something about an everyday thing, in one sentence. Gold is a rule that anybody can check by
// reading: is the answer on the question, in plain words, without filler? A judge of style, not of facts.

import { random } from '../random.ts';

/** Each with the word by which an answer names it; every third is asked about in the evaluation alone. */
const THINGS =
  `a magnet|rain|honey|a bicycle|the moon|a rainbow|salt|a camera|a clock|the heart|sleep|a bridge|a library|bread|coffee|a
volcano|wind|a mirror|glass|a battery|a candle|snow|a river|the ocean|a forest|a bee|a spider|a whale|an elephant|a cat|a dog|a
horse|a butterfly|a frog|an owl|a penguin|a shark|a seed|a tree|a flower|grass|a mushroom|an apple|a banana|a tomato|rice|milk|butter|cheese|an
egg|sugar|chocolate|tea|soup|a spoon|a knife|a pan|an oven|a fridge|soap|a towel|a toothbrush|a chair|a table|a lamp|a bed|a door|a
window|a roof|a key|a lock|a ladder|a hammer|a nail|a screw|a saw|paint|a rope|a wheel|a car|a bus|a train|a plane|a boat|a
rocket|a road|a map|a compass|a school|a hospital|a farm|a market|a garden|a park|a museum|money|a bank|a letter|a stamp|a book|a pencil|paper|a
computer|a phone|a robot|the internet|a game|chess|football|swimming|music|a piano|a guitar|a drum|a song|a painting|a movie|a
photograph|dance|a birthday|a holiday|winter|summer|spring|autumn|a cloud|lightning|thunder|fog|ice|fire|smoke|sand|a mountain|a
desert|an island|a cave|a lake|the sun|a star|a planet|gravity|light|a shadow|sound|heat|water|air|gold|iron|wood|plastic|cotton|wool|a
shoe|a hat|a coat|an umbrella|a bag|a ring`
    .replaceAll('\n', ' ')
    .split('|');

const QUESTIONS = [
  'In one short sentence, what is {it}?',
  'What is {it}? Answer in one sentence.',
  'Explain {it} to a child in one sentence.',
  'Tell me one thing about {it}, in a single sentence.',
  'In one sentence: what is {it} good for?',
  'Describe {it} in one plain sentence.',
];

export interface Question {
  text: string;
  /** The word by which an answer names what it is about. */
  about: string;
}

/** Questions in random order, none twice while there are others: some six hundred for judging, three hundred for the evaluation. */
export function sentenceQuestions(use: 'judging' | 'evaluation', seed: number, count: number): Question[] {
  const things = THINGS.filter((_, i) => (i % 3 === 2) === (use === 'evaluation'));
  const all = things.flatMap((thing) =>
    QUESTIONS.map((text) => ({ text: text.replace('{it}', thing), about: thing.split(' ').at(-1)! })),
  );
  const shuffled = random(seed, `sentences ${use}`).shuffle(all);
  return Array.from({ length: count }, (_, i) => shuffled[i % shuffled.length]!);
}

const LEAST_WORDS = 6;
const MOST_WORDS = 25;
/** Letters from which a word is a long one, and the share of such words that is too much. */
const [LONG, TOO_MANY_LONG] = [9, 0.3];
const FILLER =
  /\b(sure|certainly|of course|absolutely|i'?m (glad|happy|sorry|excited)|glad you asked|(great|good|interesting) question|as an ai|here('s| is| are)|let'?s|in (simple|other) (terms|words)|imagine|thank you|i (can|will|would|think|hope)|sorry|please|feel free)\b/i;

export interface SentenceGold {
  on_the_question: number;
  plain_words: number;
  no_filler: number;
  mean: number;
}

/** Scores from 0 to 1: one for what is asked about, named early; for words that are not long; for one whole sentence and nothing around it. */
export function sentenceGold({ about }: Question, answer: string): SentenceGold {
  const words = answer.toLowerCase().match(/\p{L}[\p{L}'’-]*/gu) ?? [];
  const names = new RegExp(`^(${about}(e?s)?|${about.replace(/y$/, 'ie')}s)(['’]s?)?$`);
  const place = words.findIndex((word) => names.test(word));
  const on_the_question = words.length < LEAST_WORDS || place < 0 ? 0 : place < 6 ? 1 : 0.5;
  const long = words.filter((word) => word.length >= LONG).length / Math.max(1, words.length);
  const plain_words = words.length < LEAST_WORDS ? 0 : Math.max(0, 1 - long / TOO_MANY_LONG);
  const trimmed = answer.trim();
  const isOneSentence = /^[^.!?\n]+[.!?]["”]?$/.test(trimmed);
  const no_filler =
    (isOneSentence ? 0.5 : 0) +
    (FILLER.test(trimmed) || words.length < LEAST_WORDS ? 0 : 0.25) +
    (words.length <= MOST_WORDS && words.length >= LEAST_WORDS ? 0.25 : 0);
  return { on_the_question, plain_words, no_filler, mean: (on_the_question + plain_words + no_filler) / 3 };
}

import { writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { expect, test } from 'vitest';
import { decode } from '../../schema/tokenizer.ts';
import { readSftLines, rootOf, type SftLine, sftRows, textPieces, textsIn, withPrompt } from '../../trainer/data.ts';
import { readPolicy } from '../../trainer/policy.ts';
import { UserError } from '../../trainer/user-error.ts';

const policy = readPolicy('trainer/seed/policy');
const answers = (lines: object[]) => {
  const path = join(tmpdir(), `sft-${process.pid}.jsonl`);
  writeFileSync(path, lines.map((line) => JSON.stringify(line)).join('\n'));
  return readSftLines(path, (line) =>
    sftRows(policy, line, 64).map(({ answer }) => decode(policy.tokenizer, answer.slice(0, -1))),
  );
};

test('every assistant turn is an answer, but those whose weight is 0', () => {
  const turns = [
    { role: 'user', content: 'Hi' },
    { role: 'assistant', content: 'No.', weight: 0 },
    { role: 'user', content: 'Please' },
    { role: 'assistant', content: 'Yes.', weight: 1 },
  ];
  expect(answers([{ messages: turns }])).toEqual([['Yes.']]);
  expect(answers([{ messages: turns.map(({ role, content }) => ({ role, content })) }])).toEqual([['No.', 'Yes.']]);
});

test('what was chosen over another, as corrections are exported, is an answer to learn', () => {
  const [user, said] = [{ role: 'user', content: 'Hi' }, (content: string) => [{ role: 'assistant', content }]];
  expect(answers([{ prompt: [user], chosen: said('Yes.'), rejected: said('No.'), weight: 1 }])).toEqual([['Yes.']]);
  expect(answers([{ prompt: 'Hi', chosen: 'Yes.', rejected: 'No.' }])).toEqual([['Yes.']]);
});

test('of a completion of several turns those of the assistant are learnt, each after what came before it', () => {
  const [user, said] = [
    (content: string) => ({ role: 'user', content }),
    (content: string) => ({ role: 'assistant', content }),
  ];
  const completion = [said('Good day.'), user('My order?'), said('On its way.')];
  expect(answers([{ prompt: [user('Hi')], completion }])).toEqual([['Good day.', 'On its way.']]);
  const [, second] = sftRows(policy, { prompt: [user('Hi')], completion } as SftLine, 64);
  expect(second!.prompt).toEqual(
    policy.encodePrompt([user('Hi'), ...completion.slice(0, 2)] as Parameters<typeof policy.encodePrompt>[0]),
  );
  const weighed = [{ ...said('Good day.'), weight: 0 }, user('My order?'), said('On its way.')];
  expect(answers([{ prompt: [user('Hi')], completion: weighed }])).toEqual([['On its way.']]);
  expect(() => answers([{ prompt: [user('Hi')], completion: [user('Hello?')] }])).toThrow(
    'completion: no assistant answers anything',
  );
});

test('messages may have OpenAI’s names, parts of text and developers', () => {
  const messages = [
    { role: 'developer', content: 'Be brief.' },
    {
      role: 'user',
      name: 'Ada',
      content: [
        { type: 'text', text: 'Hi ' },
        { type: 'text', text: 'there' },
      ],
    },
    { role: 'assistant', content: [{ type: 'text', text: 'Yes.' }] },
  ];
  const plain = [
    { role: 'system', content: 'Be brief.' },
    { role: 'user', content: 'Hi there' },
    { role: 'assistant', content: 'Yes.' },
  ];
  const rows = (line: object) => {
    writeFileSync(path, JSON.stringify(line));
    return readSftLines(path, (read) => sftRows(policy, read, 64));
  };
  const path = join(tmpdir(), `openai-${process.pid}.jsonl`);
  expect(rows({ messages })).toEqual(rows({ messages: plain }));
  const refused = (message: object) => expect(() => rows({ messages: [...plain, message] }));
  refused({ role: 'tool', content: '4' }).toThrow(
    /line 1: messages\.3\.role: Invalid option: expected one of "system"/,
  );
  refused({ role: 'user', content: [{ type: 'image_url', image_url: {} }] }).toThrow(/line 1: messages\.3\.content/);
  refused({ role: 'assistant', content: '', tool_calls: [] }).toThrow(/messages\.3: Unrecognized key: "tool_calls"/);
});

test('TRL’s implicit prompt is what chosen and rejected begin with alike', () => {
  const asked = [
    { role: 'user', content: 'Hi' },
    { role: 'assistant', content: 'Hello.' },
    { role: 'user', content: 'Please' },
  ];
  const said = (content: string) => [{ role: 'assistant', content }];
  const line = { chosen: [...asked, ...said('Yes.')], rejected: [...asked, ...said('No.')], margin: 1 };
  expect(withPrompt(line)).toEqual({ prompt: asked, chosen: said('Yes.'), rejected: said('No.'), margin: 1 });
  expect(withPrompt({ chosen: line.chosen })).toEqual({ prompt: asked, chosen: said('Yes.') });
  expect(withPrompt({ prompt: asked, chosen: said('Yes.') })).toEqual({ prompt: asked, chosen: said('Yes.') });
  for (const other of [{ chosen: 'Yes.', rejected: 'No.' }, { text: 'Yes.' }, null, 3])
    expect(withPrompt(other)).toBe(other);
  expect(answers([line])).toEqual([['Yes.']]);
});

test('lines are one conversation if they begin alike up to what the user says first', () => {
  const [system, user] = [
    (content: string) => ({ role: 'system', content }),
    (content: string) => ({ role: 'user', content }),
  ];
  const answer = { role: 'assistant', content: 'Yes.' };
  const root = (line: object) => rootOf(line as SftLine, 3);
  const hi = root({ messages: [system('Be brief.'), user('Hi'), answer] });
  expect(root({ messages: [system('Be brief.'), user('Hi'), answer, user('And?'), answer] })).toBe(hi);
  expect(root({ prompt: [system('Be brief.'), user('Hi'), answer, user('And?')], completion: 'No.' })).toBe(hi);
  expect(root({ messages: [system('Be brief.'), user('Ho'), answer] })).not.toBe(hi);
  expect(root({ messages: [user('Hi'), answer] })).not.toBe(hi);
  expect(root({ messages: [user('Hi'), answer] })).toBe(root({ prompt: 'Hi', chosen: 'Yes.', rejected: 'No.' }));
  expect(root({ text: 'Hi' })).toBe('3');
});

test('a tokenizer learns from all that is said, whatever the form', () => {
  const said = (content: string) => [{ role: 'user', content }];
  for (const line of [
    { prompt: 'Hi', completion: 'Yes.' },
    { prompt: said('Hi'), completion: said('Yes.') },
    { prompt: 'Hi', chosen: 'Yes.', rejected: 'No.' },
    { messages: [...said('Hi'), ...said('Yes.')] },
  ])
    expect(textsIn(line as SftLine)).toEqual(['Hi', 'Yes.']);
  expect(textsIn({ text: 'Hi' } as SftLine)).toEqual(['Hi']);
});

test('plain text is cut at blank lines, a piece being some paragraphs; all of it is there', () => {
  const paragraph = (letter: string) => letter.repeat(400);
  const text = `\n\n${['a', 'b', 'c', 'd'].map(paragraph).join('\n  \n')}\n\n\n`;
  expect(textPieces(text)).toEqual([['a', 'b', 'c'].map(paragraph).join('\n\n'), paragraph('d')]);
  const path = join(tmpdir(), `sft-${process.pid}.txt`);
  writeFileSync(path, text);
  expect(readSftLines(path, (line) => line)).toEqual(textPieces(text).map((piece) => ({ text: piece })));
  writeFileSync(path, ' \n');
  expect(() => readSftLines(path, (line) => line)).toThrow('has no rows');
});

test('a file that is not there, or is a folder, is said in words', () => {
  expect(() => readSftLines('/nowhere.jsonl', (line) => line)).toThrow(
    new UserError('there is no file /nowhere.jsonl'),
  );
  expect(() => readSftLines(tmpdir(), (line) => line)).toThrow(/is a folder: name a file in it/);
});

test.each([
  [20, []],
  [25, ['  and 5 more']],
])('of %i bad lines the first 20 are listed, and how many more there are', (bad, more) => {
  const path = join(tmpdir(), `sft-${process.pid}.jsonl`);
  writeFileSync(path, `${'{\n'.repeat(bad)}{"prompt": "Hi", "completion": "Yes."}\n`);
  const listed = Array.from({ length: 20 }, (_, i) => `  line ${i + 1}: not JSON`);
  expect(() => readSftLines(path, (line) => line)).toThrow(
    new UserError([`${path} has ${bad} bad lines`, ...listed, ...more].join('\n')),
  );
});

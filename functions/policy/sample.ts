// From logits to a token. Randomness is a function of (seed, stream, counter) and nothing else, so the same seed gives the
// same text in the Worker and in the trainer, alone and in a batch.
import type { Decoder } from './decoder.ts';

/** Spreads each bit of a 32-bit number over all of them; one to one. */
function mix(h: number): number {
  h = Math.imul(h ^ (h >>> 16), 0x7feb352d);
  h = Math.imul(h ^ (h >>> 15), 0x846ca68b);
  return h ^ (h >>> 16);
}

/** A number in [0, 1): the counter-th of a stream. Seeds may be any safe integer. */
export function uniform(seed: number, stream: number, counter: number): number {
  let h = 0x243f6a88;
  for (const word of [seed, Math.floor(seed / 2 ** 32), stream, counter]) h = mix((h + 0x9e3779b9) ^ word);
  return (h >>> 0) / 2 ** 32;
}

/** The largest, the first of equals. */
export function argmax(values: Float32Array): number {
  let best = 0;
  for (let i = 1; i < values.length; i++) if (values[i]! > values[best]!) best = i;
  return best;
}

interface Picked {
  id: number;
  /** Its log-probability at the temperature (at 1 where that is greedy), among all tokens that are not banned. */
  logprob: number;
}

/**
 * How a token is drawn: at the temperature, among the topK likeliest (0: all), of those among the topP of their mass, and of
 * those among what is at least minP times as likely as the likeliest: Hugging Face's logits processors, in their order.
 */
interface Sampling {
  /** This near to 0 it is greedy. */
  temperature: number;
  topP?: number;
  topK?: number;
  minP?: number;
}

/** The token of the i-th row of logits that `u` in [0, 1) picks. */
export function pick(decoder: Decoder, i: number, sampling: Sampling, u: number): Picked {
  const { temperature, topP = 1, topK = 0, minP = 0 } = sampling;
  const greedy = temperature < 1e-4;
  const weights = decoder.weights(i, greedy ? 1 : temperature);
  let total = 0;
  for (let id = 0; id < weights.length; id++) total += weights[id]!;
  const id = greedy
    ? argmax(decoder.logits(i))
    : topP < 1 || topK > 0 || minP > 0
      ? amongLikeliest(weights, total, topP, topK, minP, u)
      : among(weights, total, u);
  return { id, logprob: Math.log(weights[id]! / total) };
}

function among(weights: Float32Array, total: number, u: number): number {
  let left = u * total;
  let last = 0;
  for (let id = 0; id < weights.length; id++) {
    const weight = weights[id]!;
    if (weight === 0) continue;
    last = id;
    left -= weight;
    if (left < 0) break;
  }
  return last;
}

/** Where the k likeliest are sought one by one; more are quicker sorted. */
const FEW = 64;

function amongLikeliest(weights: Float32Array, total: number, topP: number, topK: number, minP: number, u: number) {
  let likely: number[] = [];
  let mass = total;
  if (topK > 0 && topK <= FEW) likely = largest(weights, topK).filter((id) => weights[id]! > 0);
  else {
    // All that is rarer than this together weighs less than 1 − p: the nucleus lies in the rest, which is few to sort.
    const rare = topK > 0 ? 0 : ((1 - topP) * total) / weights.length;
    for (let id = 0; id < weights.length; id++) if (weights[id]! > 0 && weights[id]! >= rare) likely.push(id);
    likely.sort((a, b) => weights[b]! - weights[a]! || a - b);
    if (topK > 0) likely = likely.slice(0, topK);
  }
  if (topK > 0) mass = likely.reduce((sum, id) => sum + weights[id]!, 0);
  const least = minP * weights[likely[0]!]!;
  let nucleus = 0;
  let size = 0;
  while (size < likely.length && (size === 0 || (nucleus < topP * mass && weights[likely[size]!]! >= least)))
    nucleus += weights[likely[size++]!]!;
  let left = u * nucleus;
  for (let rank = 0; rank < size; rank++) {
    left -= weights[likely[rank]!]!;
    if (left < 0) return likely[rank]!;
  }
  return likely[size - 1]!;
}

/** log Σ exp(logit), in double. */
export function logSumExp(logits: Float32Array): number {
  let largest = Number.NEGATIVE_INFINITY;
  for (const v of logits) if (v > largest) largest = v;
  let sum = 0;
  for (const v of logits) sum += Math.exp(v - largest);
  return largest + Math.log(sum);
}

/** The ids of the k largest, largest first. */
export function largest(values: Float32Array, k: number): number[] {
  const top: number[] = [];
  for (let id = 0; id < values.length; id++) {
    if (top.length === k && !(values[id]! > values[top[k - 1]!]!)) continue;
    let at = top.length;
    while (at > 0 && values[id]! > values[top[at - 1]!]!) at--;
    top.splice(at, 0, id);
    if (top.length > k) top.pop();
  }
  return top;
}

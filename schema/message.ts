// A chat message as OpenAI's API and TRL's conversational rows have it.
import { z } from 'zod';

export const Message = z.strictObject({ role: z.enum(['system', 'user', 'assistant']), content: z.string() });
export type Message = z.infer<typeof Message>;

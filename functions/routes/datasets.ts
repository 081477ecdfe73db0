// GET /v1/datasets/…: standing votes as NDJSON, streamed a page at a time.
import { DATASETS, type DatasetKind } from '../../schema/dataset.ts';
import { DatasetQuery } from '../../schema/wire-feedback.ts';
import { at } from '../error.ts';
import { route } from '../route.ts';
import { dataset } from '../store/datasets.ts';
import { readSnapshot } from '../store/jobs.ts';

const SUMMARIES: Record<DatasetKind, string> = {
  preference: 'Every pair of unequal rank of a choice or ranking',
  unpaired: 'Thumbs, and both_bad as a false for each',
  ranking: 'Rankings, ties sharing the better rank',
  correction: 'Answers and what they should have been',
  rating: 'Ratings by aspect',
};

export const datasetRoutes = (Object.keys(DATASETS) as DatasetKind[]).map((kind) =>
  route({
    method: 'get',
    path: `/v1/datasets/${kind}`,
    summary: `${SUMMARIES[kind]}; one JSON row a line. Resume with after=<id of the last row>; shape=standard gives strings`,
    auth: 'export',
    query: DatasetQuery,
    answers: { 200: DATASETS[kind] },
    media: 'application/x-ndjson',
    async handle({ env, query }) {
      if (query.snapshot && !(await readSnapshot(env.DB, query.snapshot)))
        throw at(422, 'snapshot', `${query.snapshot} is not known`);
      const lines = dataset(env.DB, kind, query);
      const utf8 = new TextEncoder();
      const first = await lines.next(); // what fails, fails while the status is open
      let next: IteratorResult<string> | undefined = first;
      const stream = new ReadableStream<Uint8Array>(
        {
          async pull(controller) {
            const step = next ?? (await lines.next());
            next = undefined;
            if (step.done) controller.close();
            else controller.enqueue(utf8.encode(step.value));
          },
        },
        { highWaterMark: 0 },
      );
      return new Response(stream, { headers: { 'Content-Type': 'application/x-ndjson' } });
    },
  }),
);

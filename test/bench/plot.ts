// Lines over two axes as SVG, for figures that are kept beside a LOG.md.
import type { Pair } from './pair.ts';

interface Axis {
  title: string;
  ticks: number[];
  /** Where a value lies: 0 at the axis's beginning, 1 at its end. */
  place: (value: number) => number;
}
interface Line {
  name: string;
  colour: string;
  points: [x: number, y: number][];
}

const [WIDTH, HEIGHT, LEFT, BOTTOM, MARGIN] = [720, 420, 64, 44, 32];

/** One picture a chart, one below the other. Lines of one name have one entry in the legend. */
export function svg(title: string, charts: { x: Axis; y: Axis; lines: Line[] }[]): string {
  const text = (x: number, y: number, words: string, more = '') =>
    `<text x="${x.toFixed(1)}" y="${y.toFixed(1)}" ${more}>${words}</text>`;
  const drawn = charts.map(({ x, y, lines }, i) => {
    const across = (value: number) => LEFT + x.place(value) * (WIDTH - LEFT - MARGIN);
    const up = (value: number) => HEIGHT - BOTTOM - y.place(value) * (HEIGHT - BOTTOM - MARGIN);
    const paths = lines.map(({ colour, points }) => {
      const path = points.map(([a, b], k) => `${k ? 'L' : 'M'}${across(a).toFixed(1)} ${up(b).toFixed(1)}`).join('');
      return `<path d="${path}" fill="none" stroke="${colour}" stroke-width="1.6" opacity=".8"/>`;
    });
    const legend = [...new Map(lines.map(({ name, colour }) => [name, colour]))].map(([name, colour], k) =>
      text(WIDTH - MARGIN, 30 + 18 * k, name, `fill="${colour}" text-anchor="end"`),
    );
    const ticks = [
      ...x.ticks.map((v) => text(across(v), HEIGHT - BOTTOM + 18, v.toLocaleString('en'), 'text-anchor="middle"')),
      ...y.ticks.map((v) => text(LEFT - 8, up(v) + 4, v.toLocaleString('en'), 'text-anchor="end"')),
    ];
    const titles = [
      text(WIDTH / 2, HEIGHT - 8, x.title, 'text-anchor="middle"'),
      text(14, HEIGHT / 2, y.title, `transform="rotate(-90 14 ${HEIGHT / 2})" text-anchor="middle"`),
    ];
    const axes = `<path d="M${LEFT} ${MARGIN}V${HEIGHT - BOTTOM}H${WIDTH - MARGIN}" fill="none" stroke="#495057"/>`;
    return `<g transform="translate(0 ${i * HEIGHT})">${[axes, ...ticks, ...legend, ...titles, ...paths].join('')}</g>`;
  });
  const height = charts.length * HEIGHT;
  return `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${WIDTH} ${height}" font-family="sans-serif" font-size="13"><title>${title}</title><rect width="${WIDTH}" height="${height}" fill="#fff"/>${drawn.join('')}</svg>\n`;
}

/** An axis on which a doubling is as far everywhere, from the values' least to their greatest. */
function logarithmic(title: string, values: number[], ticks: number[]): Axis {
  const [least, most] = [Math.min(...values), Math.max(...values)];
  const place = (value: number) => Math.log(value / least) / Math.log(most / least);
  return { title, ticks: ticks.filter((tick) => place(tick) > -0.02 && place(tick) < 1.02), place };
}

/** Of the lines that figures stand beside. */
const COLOURS = ['#868e96', '#e8590c'];

/** How figures grow: a chart for each thing that they grow with. */
export function growthPlot(title: string, pairs: Pair[]): string {
  const grown = pairs.flatMap(({ at, ...pair }) => (at ? [{ ...pair, ...at }] : []));
  const decades = [-1, 0, 1, 2, 3, 4, 5].flatMap((power) => [1, 2, 5].map((digit) => digit * 10 ** power));
  return svg(
    title,
    [...Map.groupBy(grown, ({ over }) => over)].map(([over, rows]) => {
      const values = rows.flatMap((row) => [row.ours, ...Object.values(row.beside)]);
      const xs = rows.map(({ x }) => x);
      return {
        x: logarithmic(over, xs, xs),
        // from a round number below to one above, so that a line that does not change is seen as one
        y: logarithmic(rows[0]!.unit, [Math.min(...values) / 1.5, Math.max(...values) * 1.5], decades),
        lines: [
          { name: 'ours', colour: '#0b7285', points: rows.map(({ x, ours }) => [x, ours] as [number, number]) },
          ...Object.keys(rows[0]!.beside).map((name, i) => ({
            name,
            colour: COLOURS[i]!,
            points: rows.map((row) => [row.x, row.beside[name]!] as [number, number]),
          })),
        ],
      };
    }),
  );
}

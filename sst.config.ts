/// <reference path="./.sst/platform/config.d.ts" />
// The cloud deployment: what infra/edge.ts makes. The GPU side (image, Batch) comes with its own issue.
export default $config({
  app(input) {
    return {
      name: 'plumb',
      home: 'cloudflare',
      removal: input?.stage === 'production' ? 'retain' : 'remove',
      providers: { cloudflare: '6.15.0' },
    };
  },
  async run() {
    const { edge } = await import('./infra/edge');
    return edge();
  },
});

/** Back to the event loop once. In workerd, setImmediate is there only with nodejs_compat. */
export const tick = (): Promise<void> =>
  new Promise((resolve) => {
    if (typeof setImmediate === 'function') setImmediate(resolve);
    else setTimeout(resolve, 0);
  });

// What the browser gets comes into the Worker as text (the rules of wrangler.jsonc).
declare module '*.client.js' {
  const text: string;
  export default text;
}
declare module '*.css' {
  const text: string;
  export default text;
}
declare module '*.html' {
  const text: string;
  export default text;
}

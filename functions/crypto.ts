// Hashes, MACs and their spellings, by Web Crypto.
const utf8 = new TextEncoder();
const bytesOf = (data: string | Uint8Array) =>
  (typeof data === 'string' ? utf8.encode(data) : data) as Uint8Array<ArrayBuffer>;

export const hex = (bytes: Uint8Array) => Array.from(bytes, (byte) => byte.toString(16).padStart(2, '0')).join('');

export const base64url = (bytes: Uint8Array) =>
  btoa(String.fromCharCode(...bytes))
    .replaceAll('+', '-')
    .replaceAll('/', '_')
    .replaceAll('=', '');

/** Undefined for what isn't base64url, or not the one spelling of its bytes. */
export function fromBase64url(text: string): Uint8Array<ArrayBuffer> | undefined {
  if (!/^[\w-]*$/.test(text)) return undefined;
  try {
    const bytes = Uint8Array.from(atob(text.replaceAll('-', '+').replaceAll('_', '/')), (char) => char.charCodeAt(0));
    return base64url(bytes) === text ? bytes : undefined;
  } catch {
    return undefined;
  }
}

/** 128 bits in the 26 letters of a ULID, whose first is 0 to 7. */
function crockford(bytes: Uint8Array): string {
  let number = 0n;
  for (const byte of bytes.subarray(0, 16)) number = (number << 8n) | BigInt(byte);
  let text = '';
  for (let i = 0; i < 26; i++, number >>= 5n) text = '0123456789ABCDEFGHJKMNPQRSTVWXYZ'[Number(number & 31n)] + text;
  return text;
}

export const sha256 = async (data: string | Uint8Array) =>
  hex(new Uint8Array(await crypto.subtle.digest('SHA-256', bytesOf(data))));

const imported = (secret: string, use: 'sign' | 'verify') =>
  crypto.subtle.importKey('raw', utf8.encode(secret), { name: 'HMAC', hash: 'SHA-256' }, false, [use]);

export const hmac = async (secret: string, text: string) =>
  new Uint8Array(await crypto.subtle.sign('HMAC', await imported(secret, 'sign'), utf8.encode(text)));

/** Compares in constant time. */
export const hmacIs = async (secret: string, text: string, mac: Uint8Array<ArrayBuffer>) =>
  crypto.subtle.verify('HMAC', await imported(secret, 'verify'), mac, utf8.encode(text));

/** Who judges, under a name that cannot be led back to the id without the pepper. */
export const raterId = async (pepper: string, id: string) => `rtr_${crockford(await hmac(pepper, `rater:${id}`))}`;

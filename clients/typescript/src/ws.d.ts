/** The part of the package `ws` that is used, as a WebSocket of the platform has it. */
declare module "ws" {
  export const WebSocket: new (url: string, options: object) => globalThis.WebSocket;
}

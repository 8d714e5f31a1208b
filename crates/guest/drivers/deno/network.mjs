// The network of cells: deno remembers from its first `fetch` whether there is a proxy, and each cell
// may have another answer.

/** Looked up before cells put others in their places. */
const { Deno, Object, URL } = globalThis;

const LOCAL_HOSTS = ["localhost", "127.0.0.1", "[::1]"];

/** Returns whether an address is in the sandbox itself, or is none. */
function isLocal(input) {
  try {
    const { hostname } = new URL(input?.url ?? input);
    return LOCAL_HOSTS.includes(hostname);
  } catch {
    return true;
  }
}

/** Leads the requests of `fetch` through the proxy of the running cell. */
export class Network {
  #url;
  #client;

  /** Has `fetch` use the proxy, if the cell's variables name one. Returns a function that undoes it, if there is one. */
  use() {
    const url = Deno.env.get("HTTP_PROXY");
    if (Deno.env.get("NODE_USE_ENV_PROXY") !== "1" || !url?.startsWith("http://127.0.0.1:")) return;
    if (url !== this.#url) this.#client = Deno.createHttpClient({ proxy: { url } });
    this.#url = url;
    const client = this.#client;
    const { fetch: original } = globalThis;
    const { fetch } = {
      fetch(...given) {
        const [input, options] = given;
        if (isLocal(input) || options?.client) return original(...given);
        return original(input, { ...options, client });
      },
    };
    Object.defineProperty(fetch, "toString", { value: () => original.toString() });
    globalThis.fetch = fetch;
    return () => {
      if (globalThis.fetch === fetch) globalThis.fetch = original;
    };
  }
}

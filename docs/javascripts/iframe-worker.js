// Pages that were opened from a disk may not start a worker, and the search is one. Here a hidden frame runs it instead.
(() => {
  if (location.protocol !== "file:") return;

  class FrameWorker extends EventTarget {
    constructor(url) {
      super();
      this.onmessage = null;
      this.frame = document.createElement("iframe");
      this.frame.hidden = true;
      document.body.appendChild(this.frame);
      const inside = this.frame.contentWindow;
      window.addEventListener("message", (event) => {
        if (event.source !== inside) return;
        const message = new MessageEvent("message", { data: event.data });
        this.dispatchEvent(message);
        if (this.onmessage) this.onmessage(message);
      });
      this.ready = new Promise((resolve, reject) => {
        const page = inside.document;
        page.open();
        page.write("<!doctype html><html><body></body></html>");
        page.close();
        // What the script finds in a worker: messages go to the page, further scripts load one after another.
        const own = page.createElement("script");
        own.textContent =
          'postMessage = (data) => parent.postMessage(data, "*");' +
          "importScripts = (...urls) => urls.reduce((before, url) => before.then(() => new Promise((done, failed) => {" +
          'const script = document.createElement("script");' +
          "script.src = url; script.onload = done; script.onerror = failed; document.body.appendChild(script);" +
          "})), Promise.resolve());";
        page.body.appendChild(own);
        const script = page.createElement("script");
        script.src = url;
        script.onload = resolve;
        script.onerror = reject;
        page.body.appendChild(script);
      });
    }

    postMessage(data) {
      this.ready.then(() => {
        const inside = this.frame.contentWindow;
        inside.dispatchEvent(new inside.MessageEvent("message", { data }));
      });
    }

    terminate() {
      this.frame.remove();
    }
  }

  window.Worker = FrameWorker;
})();

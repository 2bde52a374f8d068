'use strict';
// Runs a Node.js handler: asks the worker for events and posts what the handler returns.
//
// It speaks the Lambda Runtime API over the Unix socket (or to the host:port) in
// OPENLAMBDA_RUNTIME_SOCKET. A cold start waits for this file: so it is a CommonJS module, since the
// first ES module takes several milliseconds more, and speaks HTTP over a plain socket, which
// `node:http` would be loaded on top of.
//
// The environment says what to run: _HANDLER (path/file.function), LAMBDA_TASK_ROOT (the code),
// AWS_LAMBDA_MAX_CONCURRENCY (slots: connections that ask for events, all on the one event loop;
// absent: one).

const { EventEmitter } = require('events');
const fs = require('fs');
const net = require('net');
const path = require('path');
const { Writable } = require('stream');
const { inspect } = require('util');

const API = '/2018-06-01/runtime/';
const { env } = process;
const WORKER = env.OPENLAMBDA_RUNTIME_SOCKET;
if (WORKER === undefined) {
  // Of cluster.fork(), say, which runs again what runs now.
  console.error(
    "this is the function's runtime, which the worker starts; name another program to be run, " +
      'as in cluster.setupPrimary({ exec: file })',
  );
  process.exit(1);
}
// Whoever is started by the function is not to speak with the worker.
delete env.OPENLAMBDA_RUNTIME_SOCKET;
const ROOT = fs.realpathSync(env.LAMBDA_TASK_ROOT);
const SLOTS = Number(env.AWS_LAMBDA_MAX_CONCURRENCY || 1);
const STREAMING = Symbol.for('aws.lambda.runtime.handler.streaming');
const HTTP_INTEGRATION = 'application/vnd.awslambda.http-integration-response';
/** After this error the process ends. */
const EXITING = 'OpenLambda-Exiting: 1\r\n';
// With a reply that the next event is to answer: both of us are woken once for a call, not twice.
const NEXT = 'OpenLambda-Next: 1\r\n';

/** Codes of errors that come of a response stream whose client has left. */
const LEFT = ['ERR_STREAM_PREMATURE_CLOSE', 'ERR_STREAM_DESTROYED', 'ABORT_ERR'];

/**
 * The invocation that code runs for, where several run at once. (It costs every promise something, so
 * only there.)
 */
const calls = SLOTS > 1 ? new (require('async_hooks').AsyncLocalStorage)() : null;

/** The slots' connections. */
const connections = [];
/** Invocations whose handlers run. */
const active = new Set();
/** Set while the function's modules are loaded: the connection to report on. */
let loading = null;
/** Set once the process is about to end. */
let leaving = false;

/** One HTTP/1.1 connection to the worker, kept alive. */
class Connection {
  static connect(where) {
    return new Promise((resolve, reject) => {
      let to, folder;
      if (!where.includes('/')) {
        // A port, where no Unix socket reaches into the sandbox.
        const [host, port] = where.split(':');
        to = { host, port: Number(port), noDelay: true };
      } else if (Buffer.byteLength(where) < 100) {
        to = { path: where };
      } else {
        // A socket's address has little room: go through a descriptor of its folder.
        folder = fs.openSync(path.dirname(where), 'r');
        to = { path: `/proc/self/fd/${folder}/${path.basename(where)}` };
      }
      const socket = net.connect(to, () => {
        if (folder !== undefined) fs.closeSync(folder);
        socket.removeListener('error', reject);
        resolve(new Connection(socket));
      });
      socket.once('error', reject);
    });
  }

  constructor(socket) {
    this.socket = socket;
    this.answered = null;
    this.received = [];
    this.missing = 0;
    this.head = null;
    socket.on('data', (data) => this.receive(data));
    // The worker is gone, or done with us.
    for (const event of ['error', 'close']) socket.on(event, () => leave(1));
  }

  /** Resolves to the reply: status, headers (lower case) and body. */
  request(method, what, body = '', headers = '') {
    if (method === 'POST') {
      headers += `Content-Type: application/json\r\nContent-Length: ${Buffer.byteLength(body)}\r\n`;
    }
    const head = headOf(method, what, headers);
    if (body.length < 65536) {
      this.socket.write(head + body);
    } else {
      this.socket.write(head);
      this.socket.write(body);
    }
    return this.reply();
  }

  reply() {
    return new Promise((resolve) => (this.answered = resolve));
  }

  receive(data) {
    this.received.push(data);
    if (this.head === null) {
      const all = this.received.length === 1 ? data : Buffer.concat(this.received);
      const end = all.indexOf('\r\n\r\n');
      this.received = [all];
      if (end < 0) return;
      const [first, ...lines] = all.toString('latin1', 0, end).split('\r\n');
      const headers = {};
      for (const line of lines) {
        const colon = line.indexOf(':');
        headers[line.slice(0, colon).toLowerCase()] = line.slice(colon + 1).trim();
      }
      this.head = { status: Number(first.split(' ')[1]), headers };
      this.received = [all.subarray(end + 4)];
      this.missing = Number(headers['content-length'] || 0) - (all.length - end - 4);
    } else {
      this.missing -= data.length;
    }
    if (this.missing > 0) return;
    const reply = { ...this.head, body: Buffer.concat(this.received) };
    this.head = null;
    this.received = [];
    this.answered(reply);
  }

  /** A post and its answer without the event loop, for when the process is ending. */
  postNow(what, body, headers) {
    headers += `Content-Type: application/json\r\nContent-Length: ${Buffer.byteLength(body)}\r\n`;
    const data = Buffer.from(headOf('POST', what, headers) + body);
    const { fd } = this.socket._handle || {};
    const until = Date.now() + 2000;
    // The socket does not wait, so we do.
    const insist = (call) => {
      for (;;) {
        try {
          return call();
        } catch (error) {
          if (error.code !== 'EAGAIN' || Date.now() > until) throw error;
          pause();
        }
      }
    };
    try {
      for (let at = 0; at < data.length; ) at += insist(() => fs.writeSync(fd, data, at));
      insist(() => fs.readSync(fd, Buffer.alloc(4096)));
    } catch {
      // Then the worker tells how the process ended, and no more.
    }
  }
}

/**
 * Standard output or standard error, as Node has them for files: what is written has been written when
 * `write` returns, so `process.exit` loses nothing. Both go through the pipe of standard output, in which
 * what is of standard error is framed, so that the log has the lines of both in their order. What others
 * write to either pipe (programs, native code) goes as it is.
 */
class Output extends Writable {
  /** A line without an end is kept up to this length, where several calls run. */
  static MOST = 8192;
  /** The most bytes in a frame: with its head it is written in one piece. */
  static FRAME = 4000;

  constructor(fd) {
    super({ emitClose: false });
    this.fd = fd;
    this._type = 'pipe';
    this._isStdio = true;
    this.destroySoon = this.destroy;
    /** By call that runs, the parts of a line whose end has not been written, and their length. */
    this.begun = new Map();
  }

  /** Nothing is held back: so what is written is of the call that writes it. */
  cork() {}

  ref() {
    return this;
  }

  unref() {
    return this;
  }

  /** It cannot be closed; as in Node, who tries is told that it has been. */
  _destroy(error, done) {
    done(error);
    this._undestroy?.();
    process.nextTick(() => this.emit('close'));
  }

  _write(data, _encoding, done) {
    const call = calls?.getStore();
    try {
      // Of no call, or of one that is over: what it has begun may go on.
      if (call === undefined || call.answered) this.put(data);
      else this.putLines(call, data);
    } catch (error) {
      done(error);
      return;
    }
    done();
  }

  /** The worker is told of each line whose it is. */
  putLines(call, data) {
    const end = data.lastIndexOf(10) + 1;
    let begun = this.begun.get(call);
    if (begun === undefined) this.begun.set(call, (begun = { parts: [], length: 0 }));
    if (end > 0) {
      const tag = Buffer.from(`\x1e${call.id}\x1f`);
      const tagged = [tag, ...begun.parts];
      for (let at = 0; at < end; ) {
        const next = data.indexOf(10, at) + 1;
        if (at > 0) tagged.push(tag);
        tagged.push(data.subarray(at, next));
        at = next;
      }
      this.begun.set(call, (begun = { parts: [], length: 0 }));
      this.put(Buffer.concat(tagged));
    }
    if (end < data.length) {
      // Whoever has written it may change it.
      begun.parts.push(Buffer.from(data.subarray(end)));
      begun.length += data.length - end;
    }
    if (begun.length > Output.MOST) this.endLine(call);
    else if (begun.length === 0) this.begun.delete(call);
  }

  /** What the call has begun is a line. */
  endLine(call) {
    const begun = this.begun.get(call);
    if (begun === undefined) return;
    this.begun.delete(call);
    this.put(Buffer.concat([Buffer.from(`\x1e${call.id}\x1f`), ...begun.parts, Buffer.from('\n')]));
  }

  put(data) {
    if (this.fd === 1 || !isPipe()) {
      writeAll(this.fd, data);
      return;
    }
    for (let at = 0; at < data.length; at += Output.FRAME) {
      const part = data.subarray(at, at + Output.FRAME);
      writeAll(1, Buffer.concat([Buffer.from(`\x1d${part.length}\x1f`), part]));
    }
  }
}

/** The number of the pipe to the worker that is standard output. */
const { ino: PIPE } = fs.fstatSync(1);

/** Whether it is that still: the function may have put a file in its place. */
function isPipe() {
  try {
    return fs.fstatSync(1).ino === PIPE;
  } catch {
    return false;
  }
}

function writeAll(fd, data) {
  for (let at = 0; at < data.length; ) {
    try {
      at += fs.writeSync(fd, data, at);
    } catch (error) {
      // A program that has the pipe, too, may have said that nobody waits for room in it.
      if (error.code !== 'EAGAIN') throw error;
      pause();
    }
  }
}

/** A millisecond. */
function pause() {
  Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 1);
}

/** What was made of them, which mostly is nothing. */
const outputs = [];
for (const [name, fd] of [['stdout', 1], ['stderr', 2]]) {
  let stream;
  const get = () => {
    if (stream === undefined) outputs.push((stream = new Output(fd)));
    return stream;
  };
  Object.defineProperty(process, name, { configurable: true, enumerable: true, get });
}

/** The lines that a call has begun are ended. */
function endLines(call) {
  for (const output of outputs) {
    try {
      output.endLine(call);
    } catch {
      // There is nowhere left to write to.
    }
  }
}

function headOf(method, what, headers) {
  return `${method} ${API}${what} HTTP/1.1\r\nHost: worker\r\n${headers}\r\n`;
}

/**
 * Lets the event loop run empty while code of the function's runs, which `beforeExit` then tells; and
 * not while we wait for the worker. With several slots there is one that waits for the worker always,
 * and what it brings may be what the others wait for.
 */
function hold() {
  const waits = leaving || (loading === null && (SLOTS > 1 || active.size === 0));
  for (const { socket } of connections) waits ? socket.ref() : socket.unref();
}

function leave(code) {
  leaving = true;
  process.exit(code);
}

/** One call of the handler, until it is answered. */
class Invocation {
  constructor(connection, { headers, body }) {
    this.connection = connection;
    this.id = headers['lambda-runtime-aws-request-id'];
    this.headers = headers;
    this.body = body;
    this.waitsForEmptyLoop = true;
    this.answered = false;
    /** Whether the answer to its reply is the next event. */
    this.asked = false;
    /** What is answered when the event loop has nothing left to do. */
    this.whenEmpty = null;
    this.stream = null;
    this.over = new Promise((resolve) => (this.end = resolve));
  }

  run(handler, streaming) {
    active.add(this);
    hold();
    try {
      const event = JSON.parse(this.body.toString());
      this.body = null;
      if (streaming) {
        this.stream = new ResponseStream(this);
        this.awaitStream(handler(event, this.stream, this.context()));
        return;
      }
      const callback = (error, value) => this.callBack(error, value);
      const result = handler(event, this.context(), callback);
      if (result !== null && typeof result === 'object' && typeof result.then === 'function') {
        this.whenEmpty = () =>
          this.fail(
            new Error(
              "the handler's promise can never settle: nothing that it could wait for is left; " +
                'look for a promise whose resolve is never called',
            ),
            'Runtime.UnsettledPromise',
          );
        result.then(
          (value) => this.succeed(value),
          (error) => this.fail(error),
        );
      } else if (result !== undefined && handler.length < 3 && isData(result)) {
        this.succeed(result);
      } else if (!this.whenEmpty) {
        // Someone may still call back. AWS's answer, when nobody does, is null.
        this.whenEmpty = () => this.succeed(null);
      }
    } catch (error) {
      this.fail(error);
    }
  }

  /** What the handler gets as its third argument. */
  callBack(error, value) {
    if (error !== undefined && error !== null) {
      this.fail(error);
    } else if (this.waitsForEmptyLoop && SLOTS === 1) {
      this.whenEmpty = () => this.succeed(value);
    } else {
      this.succeed(value);
    }
  }

  async awaitStream(result) {
    const { stream } = this;
    this.whenEmpty = () =>
      stream.left
        ? this.close()
        : this.fail(new Error('the response stream was never ended; call responseStream.end()'));
    try {
      // Whoever waits for a stream that is closed may wait for ever, so not for long then.
      await Promise.race([result, stream.gone.then(() => (stream.left ? patience() : result))]);
      await stream.gone;
      if (stream.left) this.close();
      else if (stream.ended) this.finish();
      else this.whenEmpty();
    } catch (error) {
      this.fail(error);
    }
  }

  succeed(value) {
    if (this.answered) return;
    let text;
    try {
      text = JSON.stringify(value);
    } catch (error) {
      const message = `Unable to marshal response: ${messageOf(error)}`;
      this.fail(error, 'Runtime.MarshalError', message);
      return;
    }
    // Neither undefined nor a function is in JSON.
    this.answer('response', text === undefined ? 'null' : text);
  }

  fail(error, kind, message, headers = '') {
    if (this.answered) return;
    if (this.stream?.left) {
      // What comes of a stream that was closed is no news.
      if (!LEFT.includes(error?.code)) console.error('error after the client has left:', error);
      this.close();
      return;
    }
    const told = describe(error, kind, message);
    if (this.stream?.begun) {
      if (!this.stream.ended) {
        const type = told.errorType.replace(/[^ -~]/g, '?');
        const body = Buffer.from(JSON.stringify(told)).toString('base64');
        this.connection.socket.write(
          `0\r\nLambda-Runtime-Function-Error-Type: ${type}\r\n` +
            `Lambda-Runtime-Function-Error-Body: ${body}\r\n\r\n`,
        );
      } else {
        console.error('error after the end of the response stream:', error);
      }
      this.finish();
      return;
    }
    this.answer('error', JSON.stringify(told), headers);
  }

  answer(what, body, headers) {
    this.settle();
    this.asked = what === 'response';
    if (this.asked) headers = NEXT;
    this.connection.request('POST', `invocation/${this.id}/${what}`, body, headers).then(this.end);
  }

  /** The client has left, and with it whoever could be told an error. */
  close() {
    if (this.answered) return;
    this.connection.socket.write('0\r\n\r\n');
    this.finish();
  }

  /** Its handler is done, as far as its caller is concerned. */
  settle() {
    if (calls) endLines(this);
    this.answered = true;
    active.delete(this);
    hold();
  }

  /** The stream has told its end, and the worker's answer to it is there or on its way. */
  finish() {
    if (this.answered) return;
    this.settle();
    this.stream.reply.then(this.end);
  }

  context() {
    const invocation = this;
    const { headers } = this;
    const deadline = Number(headers['lambda-runtime-deadline-ms']);
    const trace = headers['lambda-runtime-trace-id'];
    // One for the whole process, so of no use when several calls are in it.
    if (SLOTS === 1 && trace) env._X_AMZN_TRACE_ID = trace;
    return {
      get callbackWaitsForEmptyEventLoop() {
        return invocation.waitsForEmptyLoop;
      },
      set callbackWaitsForEmptyEventLoop(wanted) {
        invocation.waitsForEmptyLoop = Boolean(wanted);
      },
      functionName: env.AWS_LAMBDA_FUNCTION_NAME,
      functionVersion: env.AWS_LAMBDA_FUNCTION_VERSION,
      memoryLimitInMB: env.AWS_LAMBDA_FUNCTION_MEMORY_SIZE,
      logGroupName: env.AWS_LAMBDA_LOG_GROUP_NAME,
      logStreamName: env.AWS_LAMBDA_LOG_STREAM_NAME,
      invokedFunctionArn: headers['lambda-runtime-invoked-function-arn'],
      awsRequestId: this.id,
      clientContext: clientContext(headers['lambda-runtime-client-context']),
      identity: undefined,
      getRemainingTimeInMillis: () => Math.max(0, deadline - Date.now()),
      done: (error, value) =>
        error === undefined || error === null ? this.succeed(value) : this.fail(error),
      succeed: (value) => this.succeed(value),
      fail: (error) => this.fail(error),
    };
  }
}

/**
 * Whether a value may be meant as the reply. AWS's runtime takes none that is not promised; here a handler
 * may return one. But what has functions or promises in it, as a timer or a server, was returned because the
 * handler's last expression had it: such a handler calls back.
 */
function isData(value) {
  if (typeof value === 'function' || value instanceof EventEmitter) return false;
  if (value === null || typeof value !== 'object' || typeof value.toJSON === 'function') return true;
  return !Object.values(value).some(
    (part) => typeof part === 'function' || typeof part?.then === 'function',
  );
}

/** How long a handler has after its stream was closed. */
function patience() {
  return new Promise((resolve) => setTimeout(resolve, 1000).unref());
}

function clientContext(header) {
  if (header === undefined) return undefined;
  try {
    return JSON.parse(Buffer.from(header, 'latin1').toString());
  } catch {
    return undefined;
  }
}

/** What a streaming handler writes its reply to. Nothing is sent before the first byte. */
class ResponseStream extends Writable {
  constructor(invocation) {
    super();
    this.invocation = invocation;
    this.begun = false;
    this.ended = false;
    /** The client has, in the middle of the reply. */
    this.left = false;
    this.contentType = 'application/octet-stream';
    this.prelude = null;
    this.gone = new Promise((resolve) => this.once('close', resolve));
  }

  setContentType(type) {
    if (this.begun) throw new Error('the reply has begun already; call setContentType before the first write');
    this.contentType = String(type);
  }

  write(chunk, ...rest) {
    const bytes = typeof chunk === 'string' || ArrayBuffer.isView(chunk);
    return super.write(bytes ? chunk : JSON.stringify(chunk), ...rest);
  }

  begin() {
    if (this.begun) return;
    this.begun = true;
    const { connection, id } = this.invocation;
    const headers =
      `Content-Type: ${this.contentType.replace(/[\r\n]/g, ' ')}\r\n` +
      'Lambda-Runtime-Function-Response-Mode: streaming\r\nTransfer-Encoding: chunked\r\n' +
      'OpenLambda-Early: 1\r\n';
    connection.socket.write(headOf('POST', `invocation/${id}/response`, headers), 'latin1');
    this.reply = connection.reply();
    // An answer before the end says that the client has left. The handler is told as by Node's own
    // server: its stream is closed.
    this.reply.then(() => {
      if (this.ended || this.invocation.answered) return;
      this.left = true;
      this.destroy();
    });
    if (this.prelude !== null) this.send(Buffer.from(`${this.prelude}\0\0\0\0\0\0\0\0`));
  }

  send(data, sent) {
    const { socket } = this.invocation.connection;
    socket.cork();
    socket.write(`${data.length.toString(16)}\r\n`);
    socket.write(data);
    socket.write('\r\n', sent);
    socket.uncork();
  }

  _write(chunk, _encoding, sent) {
    // What comes after an error was told has nowhere to go.
    if (this.invocation.answered) return sent();
    this.begin();
    // A chunk of no length would be the end.
    if (chunk.length === 0) return sent();
    this.send(chunk, sent);
  }

  _final(sent) {
    if (this.invocation.answered) return sent();
    this.begin();
    this.ended = true;
    this.invocation.connection.socket.write('0\r\n\r\n', sent);
  }
}

/** As AWS's own runtime offers it to handlers. */
globalThis.awslambda = {
  streamifyResponse(handler) {
    handler[STREAMING] = 'response';
    return handler;
  },
  HttpResponseStream: {
    from(stream, prelude) {
      stream.setContentType(HTTP_INTEGRATION);
      stream.prelude = JSON.stringify(prelude);
      return stream;
    },
  },
};

/** The error as Lambda's JSON, without this file's own frames. */
function describe(error, kind, message) {
  const known = isError(error);
  const stackTrace = known ? framesOf(error) : [];
  let cause = known ? error.cause : undefined;
  for (let depth = 0; isError(cause) && depth < 8; depth++) {
    stackTrace.push(`Caused by: ${cause.name}: ${messageOf(cause)}`, ...framesOf(cause));
    cause = cause.cause;
  }
  return {
    errorType: kind || (known ? String(error.name) : typeof error),
    errorMessage: message === undefined ? messageOf(error) : message,
    stackTrace,
  };
}

/** Errors of other contexts are errors too, though no instance of ours. */
function isError(value) {
  try {
    return value instanceof Error || (typeof value.stack === 'string' && 'message' in value);
  } catch {
    return false;
  }
}

function messageOf(error) {
  try {
    return isError(error) ? String(error.message) : typeof error === 'string' ? error : inspect(error);
  } catch {
    return 'the error cannot be shown as text';
  }
}

function framesOf(error) {
  let frames;
  try {
    frames = String(error.stack).split('\n').filter((line) => /^\s+at /.test(line));
  } catch {
    return [];
  }
  const theirs = frames.filter((line) => !line.includes(__filename) && !line.includes('node:internal'));
  return theirs.length > 0 ? theirs : frames.filter((line) => !line.includes(__filename));
}

/** Why there is no handler. */
class Refusal {
  constructor(kind, error, message) {
    this.told = describe(error, kind, message);
  }
}

/** The handler `path/file.function`, and whether it streams. Throws a Refusal. */
async function load(name) {
  const base = name.slice(name.lastIndexOf('/') + 1);
  const dot = base.indexOf('.');
  const nested = base.slice(dot + 1);
  if (dot <= 0 || nested === '' || name.split('/').includes('..')) {
    const message = `Handler '${name}' names no function in the code; write it as file.function, as in index.handler`;
    throw new Refusal('Runtime.MalformedHandlerName', new Error(message));
  }
  const module = name.slice(0, name.length - base.length + dot);
  const names = ['.js', '.mjs', '.cjs'].map((extension) => module + extension);
  const file = names.find((file) => fs.existsSync(path.join(ROOT, file)));
  if (file === undefined) {
    const message = `Unable to import module '${module}': there is no ${names.join(', ')}; add one of them, or correct handler in ol.toml`;
    throw new Refusal('Runtime.ImportModuleError', new Error(message));
  }
  let found;
  try {
    found = await importFrom(path.join(ROOT, file));
  } catch (error) {
    throw refusalOf(error, module, file);
  }
  let holder;
  for (const key of nested.split('.')) [holder, found] = [found, found?.[key]];
  if (typeof found !== 'function') {
    const what = found === undefined ? 'is not exported' : 'is not a function';
    const message = `Handler '${nested}' ${what} in ${file}; write exports.${nested} = async (event) => … there, or in an ES module: export const ${nested} = …`;
    throw new Refusal('Runtime.HandlerNotFound', new Error(message));
  }
  return { handler: found.bind(holder), streaming: found[STREAMING] === 'response' };
}

/** Packages where Lambda's layers have them are found, where the bundle has such a folder. */
function addLayers() {
  const layers = path.join(ROOT, 'nodejs', 'node_modules');
  if (!fs.existsSync(layers)) return;
  env.NODE_PATH = env.NODE_PATH ? `${env.NODE_PATH}:${layers}` : layers;
  const module = require('module');
  module._initPaths();
  // ES modules do not look there.
  module.registerHooks?.({
    resolve(specifier, context, next) {
      try {
        return next(specifier, context);
      } catch (error) {
        if (error.code !== 'ERR_MODULE_NOT_FOUND' || /^[./]|^\w+:/.test(specifier)) throw error;
        const parentURL = require('url').pathToFileURL(path.join(layers, '..', 'any.js')).href;
        try {
          return next(specifier, { ...context, parentURL });
        } catch {
          throw error;
        }
      }
    },
  });
}

/** One object a line instead of text, as AWS's runtime writes it for AWS_LAMBDA_LOG_FORMAT=JSON. */
function logInJson() {
  const order = ['TRACE', 'DEBUG', 'INFO', 'WARN', 'ERROR', 'FATAL'];
  const least = Math.max(0, order.indexOf(String(env.AWS_LAMBDA_LOG_LEVEL).toUpperCase()));
  const { format } = require('util');
  const methods = { trace: 'TRACE', debug: 'DEBUG', log: 'INFO', info: 'INFO', warn: 'WARN', error: 'ERROR' };
  for (const [method, level] of Object.entries(methods)) {
    console[method] = (...values) => {
      if (order.indexOf(level) < least) return;
      const line = { timestamp: new Date().toISOString(), level };
      const call = calls ? calls.getStore() : [...active][0];
      if (call && !call.answered) line.requestId = call.id;
      const [first] = values;
      if (values.length === 1 && isError(first)) {
        const { errorType, errorMessage, stackTrace } = describe(first);
        Object.assign(line, { errorType, errorMessage, stackTrace });
      } else {
        line.message = values.length === 1 && typeof first === 'object' ? first : format(...values);
      }
      let text;
      try {
        text = JSON.stringify(line);
      } catch {
        text = JSON.stringify({ ...line, message: format(...values) });
      }
      process.stdout.write(`${text}\n`);
    };
  }
}

async function importFrom(file) {
  if (!isEsModule(file)) {
    try {
      return require(file);
    } catch (error) {
      // What awaits at its top level cannot be required.
      if (error?.code !== 'ERR_REQUIRE_ASYNC_MODULE') throw error;
    }
  }
  return import(require('url').pathToFileURL(file).href);
}

/** As Node decides: by the file's extension, then by the nearest package.json. */
function isEsModule(file) {
  if (!file.endsWith('.js')) return file.endsWith('.mjs');
  let folder = path.dirname(file);
  for (;;) {
    try {
      return JSON.parse(fs.readFileSync(path.join(folder, 'package.json'), 'utf8')).type === 'module';
    } catch (error) {
      if (error.code !== 'ENOENT' && error.code !== 'ENOTDIR') return false;
    }
    const parent = path.dirname(folder);
    if (parent === folder || folder === ROOT) return false;
    folder = parent;
  }
}

function refusalOf(error, module, file) {
  // Not one of JSON.parse's, which is called by somebody.
  const ours = (line) => line.includes('node:');
  if (error instanceof SyntaxError && (placeOf(error.stack) || framesOf(error).every(ours))) {
    const where = placeOf(error.stack) || placeByChecking(file);
    let message = `Syntax error in module '${module}': ${where ? `${where}: ` : ''}${error.message}`;
    if (/import statement outside a module|Unexpected token 'export'/.test(error.message)) {
      message += '; name the file .mjs, or set "type": "module" in package.json';
    }
    return new Refusal('Runtime.UserCodeSyntaxError', error, message);
  }
  if (error?.code === 'MODULE_NOT_FOUND' || error?.code === 'ERR_MODULE_NOT_FOUND') {
    const [first] = messageOf(error).split('\n');
    const packaged = /'(@?[\w-][^']*)'/.exec(first)?.[1].startsWith('/') === false;
    const next = packaged ? '; install it with npm in the function\'s folder and deploy again' : '';
    const message = `Unable to import module '${module}': ${first}${next}`;
    return new Refusal('Runtime.ImportModuleError', error, message);
  }
  return new Refusal(undefined, error);
}

/** `file, line n`, where a stack or what Node prints begins with the place. */
function placeOf(text) {
  const place = /^(?:file:\/\/)?(\/.*):(\d+)$/m.exec(String(text));
  return place && `${path.relative(ROOT, place[1])}, line ${place[2]}`;
}

/**
 * Where a syntax error in an ES module is: Node keeps that to itself until it prints the error. So
 * it is asked to check files one by one, the handler's own first.
 */
function placeByChecking(own) {
  const files = [own];
  const folders = [''];
  while (folders.length > 0 && files.length < 30) {
    const folder = folders.shift();
    for (const entry of fs.readdirSync(path.join(ROOT, folder), { withFileTypes: true })) {
      const name = path.join(folder, entry.name);
      if (entry.isDirectory() && entry.name !== 'node_modules') folders.push(name);
      else if (/\.[cm]?js$/.test(entry.name) && name !== own) files.push(name);
    }
  }
  const { spawnSync } = require('child_process');
  for (const file of files) {
    const whole = path.join(ROOT, file);
    const checked = spawnSync(process.execPath, ['--check', whole], { encoding: 'utf8' });
    if (checked.status === 1) return placeOf(checked.stderr);
  }
  return null;
}

/** One slot: event after event, until the worker ends the process. */
async function serve(connection, { handler, streaming }) {
  let upcoming;
  for (;;) {
    const reply = upcoming || (await connection.request('GET', 'invocation/next'));
    if (reply.status !== 200) throw new Error(`the worker gave no next event, but answered ${reply.status}: ${reply.body}`);
    const invocation = new Invocation(connection, reply);
    if (calls) calls.run(invocation, () => invocation.run(handler, streaming));
    else invocation.run(handler, streaming);
    const told = await invocation.over;
    upcoming = invocation.asked && told.status === 200 ? told : undefined;
  }
}

/** An error that nobody has caught ends the process, after every call that runs has been told of it. */
async function crash(error, kind) {
  if (leaving) return;
  leaving = true;
  hold();
  const concerned = [...active];
  if (loading) {
    await loading.request('POST', 'init/error', JSON.stringify(describe(error, kind)));
  } else if (concerned.length === 0) {
    console.error(error);
  }
  for (const invocation of concerned) invocation.fail(error, kind, undefined, EXITING);
  await Promise.all(concerned.map((invocation) => invocation.over));
  process.exit(129);
}

process.on('uncaughtException', (error, origin) => {
  crash(error, origin === 'unhandledRejection' ? 'Runtime.UnhandledPromiseRejection' : undefined);
});

process.on('beforeExit', () => {
  if (loading) {
    const message = 'the module never finishes loading: nothing is left that its top-level await could wait for';
    crash(new Error(message), 'Runtime.InitError');
  }
  for (const invocation of [...active]) invocation.whenEmpty();
});

process.on('exit', (code) => {
  if (calls) {
    // What others print at the exit is not kept, either.
    Output.MOST = 0;
    for (const call of active) endLines(call);
  }
  if (leaving) return;
  const told = (what) =>
    JSON.stringify({ errorType: 'Runtime.ExitError', errorMessage: `${what} ${code}`, stackTrace: [] });
  if (loading) loading.postNow('init/error', told(`${env._HANDLER} called process.exit when it was loaded, with`), '');
  for (const { connection, id, stream } of active) {
    if (stream?.begun) continue;
    connection.postNow(`invocation/${id}/error`, told('The handler called process.exit with'), EXITING);
  }
});

async function main() {
  loading = await Connection.connect(WORKER);
  connections.push(loading);
  hold();
  if (String(env.AWS_LAMBDA_LOG_FORMAT).toUpperCase() === 'JSON') logInJson();
  addLayers();
  let loaded;
  try {
    loaded = await load(env._HANDLER);
  } catch (refusal) {
    leaving = true;
    hold();
    await loading.request('POST', 'init/error', JSON.stringify(refusal.told));
    process.exit(1);
  }
  loading = null;
  while (connections.length < SLOTS) connections.push(await Connection.connect(WORKER));
  hold();
  for (const connection of connections) serve(connection, loaded);
}

main();

import type { DescMethod, DescMethodServerStreaming, DescMethodUnary, Message } from "@bufbuild/protobuf";

/** A library under test, as the page calls it. */
export interface Client {
  /** Make a call and return its response. Throws a Failure. */
  unary(method: DescMethodUnary, request: Message, options: Options): Promise<Message>;

  /** Hand each message to `receive` until the stream ends. Throws a Failure. */
  stream(
    method: DescMethodServerStreaming,
    request: Message,
    options: Options,
    receive: (message: Message) => void,
  ): Promise<void>;
}

export interface Options {
  headers?: Record<string, string>;
  /** Milliseconds. */
  timeout?: number;
  signal?: AbortSignal;
}

/** An error of any library. */
export class Failure extends Error {
  constructor(
    /** In lower case, with underscores. */
    readonly code: string,
    message: string,
    /** The details that could be decoded, as JSON, each with its type. */
    readonly details: { type: string; value: unknown }[],
  ) {
    super(message);
  }
}

export function pathOf(method: DescMethod): string {
  return `/${method.parent.typeName}/${method.name}`;
}

// What tests call in the page: tests/support/page_clients.py.
import { type DescMessage, type DescMethodUnary, fromJson, type JsonValue, toJson } from "@bufbuild/protobuf";
import { createConnectTransport, createGrpcWebTransport } from "@connectrpc/connect-web";

import { OrderService } from "../build/gen/listings/v1/orders_pb";
import { type Client, Failure, type Options } from "./client";
import { connect } from "./connect";
import { google } from "./google";

const CLIENTS: Record<string, (baseUrl: string) => Client> = {
  "connect-web-connect-binary": (baseUrl) =>
    connect(createConnectTransport({ baseUrl, useBinaryFormat: true })),
  "connect-web-connect-json": (baseUrl) => connect(createConnectTransport({ baseUrl })),
  "connect-web-connect-get": (baseUrl) => connect(createConnectTransport({ baseUrl, useHttpGet: true })),
  "connect-web-grpc-web-binary": (baseUrl) => connect(createGrpcWebTransport({ baseUrl })),
  "connect-web-grpc-web-json": (baseUrl) =>
    connect(createGrpcWebTransport({ baseUrl, useBinaryFormat: false })),
  "grpc-web-text": (baseUrl) => google(baseUrl, "text"),
  "grpc-web-binary": (baseUrl) => google(baseUrl, "binary"),
};

type Report = { message: JsonValue } | { failure: Failed } | { end: true };
type Failed = { code: string; message: string; details: unknown };

declare global {
  /** Tells the test what has come on a stream. */
  function report(stream: number, report: Report): Promise<void>;
}

const streams = new Map<number, AbortController>();

Object.assign(globalThis, {
  /** Make a call, and return `{message}` or `{failure}`. */
  async unary(client: string, baseUrl: string, name: string, request: JsonValue, options: Options) {
    const method = OrderService.methods.find((each) => each.name === name) as DescMethodUnary;
    try {
      const message = fromJson(method.input, request);
      return { message: toJson(method.output, await CLIENTS[client](baseUrl).unary(method, message, options)) };
    } catch (error) {
      return { failure: failed(error) };
    }
  },

  /** Begin to watch; `report` tells what comes. */
  watch(stream: number, client: string, baseUrl: string, request: JsonValue, options: Options) {
    const method = OrderService.method.watchOrderPayments;
    const controller = new AbortController();
    streams.set(stream, controller);
    CLIENTS[client](baseUrl)
      .stream(
        method,
        fromJson(method.input, request),
        { ...options, signal: controller.signal },
        (message) => report(stream, { message: toJson<DescMessage>(method.output, message) }),
      )
      .then(
        () => report(stream, { end: true }),
        (error) => report(stream, { failure: failed(error) }),
      );
  },

  /** End a watch. */
  cancel(stream: number) {
    streams.get(stream)?.abort();
  },
});

function failed(error: unknown): Failed {
  if (error instanceof Failure) {
    return { code: error.code, message: error.message, details: error.details };
  }
  throw error;
}

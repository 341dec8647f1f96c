// connect-node, over Connect, gRPC and gRPC-Web.

import { readFileSync } from "node:fs";

import { ConnectError, createClient } from "@connectrpc/connect";
import { createConnectTransport, createGrpcTransport, createGrpcWebTransport } from "@connectrpc/connect-node";

import { OrderService } from "./gen/listings/v1/orders_pb.js";

const transports = {
  connect: (options) => createConnectTransport({ httpVersion: "1.1", ...options }),
  grpc: createGrpcTransport,
  "grpc-web": (options) => createGrpcWebTransport({ httpVersion: "2", ...options }),
};

export function open({ protocol, url, ca, token }) {
  const nodeOptions = ca ? { ca: readFileSync(ca) } : {};
  const client = createClient(OrderService, transports[protocol]({ baseUrl: url, nodeOptions }));
  const headers = token ? { authorization: `Bearer ${token}` } : {};

  return {
    async *call(method, request, { deadline, signal }) {
      const answer = client[method.localName](request, { headers, timeoutMs: deadline, signal });
      if (method.methodKind === "unary") {
        yield await answer;
      } else {
        yield* answer;
      }
    },
    failure(error, registry) {
      const found = ConnectError.from(error);
      return { code: found.code, message: found.rawMessage, details: found.findDetails(registry) };
    },
    close() {},
  };
}

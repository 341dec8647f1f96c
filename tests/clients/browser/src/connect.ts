import { type DescMessage, type Message, type MessageInitShape, toJson } from "@bufbuild/protobuf";
import { ConnectError, type Transport } from "@connectrpc/connect";
import { codeToString } from "@connectrpc/connect/protocol-connect";

import { BadRequestSchema, ErrorInfoSchema, RetryInfoSchema } from "../build/gen/google/rpc/error_details_pb";
import { type Client, Failure } from "./client";

/** @connectrpc/connect-web, over either of its transports. */
export function connect(transport: Transport): Client {
  return {
    async unary(method, request, { signal, timeout, headers }) {
      try {
        const init = request as MessageInitShape<DescMessage>;
        return (await transport.unary(method, signal, timeout, headers, init)).message as Message;
      } catch (error) {
        throw failure(error);
      }
    },
    async stream(method, request, { signal, timeout, headers }, receive) {
      try {
        const requests = (async function* () {
          yield request as MessageInitShape<DescMessage>;
        })();
        const response = await transport.stream(method, signal, timeout, headers, requests);
        for await (const message of response.message) {
          receive(message as Message);
        }
      } catch (error) {
        throw failure(error);
      }
    },
  };
}

function failure(reason: unknown): Failure {
  const error = ConnectError.from(reason);
  const details = [ErrorInfoSchema, BadRequestSchema, RetryInfoSchema].flatMap((schema) =>
    error
      .findDetails(schema)
      .map((found) => ({ type: schema.typeName, value: toJson<DescMessage>(schema, found) })),
  );
  return new Failure(codeToString(error.code), error.rawMessage, details);
}

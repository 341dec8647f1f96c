import { type DescMessage, type DescMethod, fromBinary, type Message, toBinary, toJson } from "@bufbuild/protobuf";
import { base64Decode } from "@bufbuild/protobuf/wire";
import { anyUnpack } from "@bufbuild/protobuf/wkt";
import { GrpcWebClientBase, MethodDescriptor, MethodType, type RpcError, StatusCode } from "grpc-web";

import { BadRequestSchema, ErrorInfoSchema, RetryInfoSchema } from "../build/gen/google/rpc/error_details_pb";
import { StatusSchema } from "../build/gen/google/rpc/status_pb";
import { type Client, Failure, type Options, pathOf } from "./client";

/** Google's grpc-web, as its generated code calls it, with messages of protobuf-es. */
export function google(baseUrl: string, format: "text" | "binary"): Client {
  const base = new GrpcWebClientBase({ format });
  return {
    async unary(method, request, options) {
      const [url, metadata] = [baseUrl + pathOf(method), metadataOf(options)];
      try {
        return await base.unaryCall(url, request, metadata, descriptor(method));
      } catch (error) {
        throw failure(error as RpcError);
      }
    },
    stream(method, request, options, receive) {
      const [url, metadata] = [baseUrl + pathOf(method), metadataOf(options)];
      const stream = base.serverStreaming(url, request, metadata, descriptor(method));
      return new Promise((resolve, reject) => {
        stream.on("data", receive);
        stream.on("end", resolve);
        stream.on("error", (error) => reject(failure(error)));
        options.signal?.addEventListener("abort", () => {
          stream.cancel();
          resolve();
        });
      });
    },
  };
}

function descriptor(method: DescMethod): MethodDescriptor<Message, Message> {
  const streams = method.methodKind === "server_streaming";
  return new MethodDescriptor<Message, Message>(
    pathOf(method),
    streams ? MethodType.SERVER_STREAMING : MethodType.UNARY,
    Object as never,
    Object as never,
    (request: Message) => toBinary(method.input, request),
    (response: Uint8Array) => fromBinary(method.output, response),
  );
}

function metadataOf({ headers, timeout }: Options): Record<string, string> {
  return timeout === undefined ? { ...headers } : { ...headers, deadline: `${Date.now() + timeout}` };
}

function failure(error: RpcError): Failure {
  const name = Object.entries(StatusCode).find(([, code]) => code === error.code)?.[0];
  const trailer = error.metadata?.["grpc-status-details-bin"];
  const found = trailer ? fromBinary(StatusSchema, base64Decode(trailer)).details : [];
  const details = found.flatMap((detail) =>
    [ErrorInfoSchema, BadRequestSchema, RetryInfoSchema].flatMap((schema: DescMessage) => {
      const value = anyUnpack(detail, schema);
      return value ? [{ type: schema.typeName, value: toJson(schema, value) }] : [];
    }),
  );
  return new Failure((name ?? `${error.code}`).toLowerCase(), error.message, details);
}

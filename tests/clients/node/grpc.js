// grpc-js, with protobuf-es as its serializer.

import { readFileSync } from "node:fs";

import { fromBinary, toBinary } from "@bufbuild/protobuf";
import { anyUnpack } from "@bufbuild/protobuf/wkt";
import * as grpc from "@grpc/grpc-js";

import { StatusSchema } from "./gen/google/rpc/status_pb.js";

export function open({ url, ca, token, service_config: serviceConfig }) {
  let credentials = ca ? grpc.credentials.createSsl(readFileSync(ca)) : grpc.credentials.createInsecure();
  if (token) {
    const bearer = new grpc.Metadata();
    bearer.set("authorization", `Bearer ${token}`);
    credentials = credentials.compose(
      grpc.credentials.createFromMetadataGenerator((_, callback) => callback(null, bearer)),
    );
  }
  const options = serviceConfig ? { "grpc.service_config": JSON.stringify(serviceConfig) } : {};
  const client = new grpc.Client(url.replace(/^.*:\/\//, ""), credentials, options);

  return {
    async *call(method, request, { deadline, signal }) {
      const path = `/${method.parent.typeName}/${method.name}`;
      const serialize = (message) => Buffer.from(toBinary(method.input, message));
      const deserialize = (bytes) => fromBinary(method.output, bytes);
      const metadata = new grpc.Metadata();
      const callOptions = deadline ? { deadline: Date.now() + deadline } : {};
      if (method.methodKind === "unary") {
        yield await new Promise((resolve, reject) => {
          const answered = (error, response) => (error ? reject(error) : resolve(response));
          const call = client.makeUnaryRequest(
            path, serialize, deserialize, request, metadata, callOptions, answered,
          );
          signal.addEventListener("abort", () => call.cancel());
        });
      } else {
        const call = client.makeServerStreamRequest(
          path, serialize, deserialize, request, metadata, callOptions,
        );
        signal.addEventListener("abort", () => call.cancel());
        yield* call;
      }
    },
    failure(error, registry) {
      const [status] = error.metadata?.get("grpc-status-details-bin") ?? [];
      const packed = status ? fromBinary(StatusSchema, status).details : [];
      return { code: error.code, message: error.details, details: packed.map((each) => anyUnpack(each, registry)) };
    },
    close() {
      client.close();
    },
  };
}

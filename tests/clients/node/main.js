// Makes the calls of a test with grpc-js or connect-node.
//
// Its only argument is the options, as JSON. It reads calls from standard input, one JSON object a
// line, makes them at the same time, and writes a line for each message and for the end of each
// call. It ends with its input. The fields are those of ../go/main.go.

import { createInterface } from "node:readline";

import { createRegistry, fromJson, toJson } from "@bufbuild/protobuf";
import { AnySchema, anyPack } from "@bufbuild/protobuf/wkt";

import { file_google_rpc_error_details } from "./gen/google/rpc/error_details_pb.js";
import { OrderService } from "./gen/listings/v1/orders_pb.js";

const registry = createRegistry(file_google_rpc_error_details);
const methods = new Map(OrderService.methods.map((method) => [method.name, method]));

const options = JSON.parse(process.argv[2]);
const libraries = { "grpc-js": "./grpc.js", "connect-node": "./connect.js" };
const { open } = await import(libraries[options.library]);
const client = open(options);

const write = (line) => process.stdout.write(JSON.stringify(line) + "\n");

async function run({ id, method: name, request, deadline, cancel }) {
  const method = methods.get(name);
  const aborter = new AbortController();
  const timer = cancel ? setTimeout(() => aborter.abort(), cancel) : undefined;
  try {
    const options = { deadline: deadline || undefined, signal: aborter.signal };
    for await (const message of client.call(method, fromJson(method.input, request), options)) {
      write({ id, message: toJson(method.output, message) });
    }
    write({ id });
  } catch (error) {
    const { code, message, details } = client.failure(error, registry);
    const encoded = details.map((each) =>
      toJson(AnySchema, anyPack(registry.getMessage(each.$typeName), each), { registry }),
    );
    write({ id, error: { code, message, details: encoded } });
  } finally {
    clearTimeout(timer);
  }
}

const calls = [];
for await (const line of createInterface({ input: process.stdin })) {
  calls.push(run(JSON.parse(line)));
}
await Promise.all(calls);
client.close();

/** What it takes to serve HTTP. It is loaded by the first part that does: it is as much as all the rest of a service. */
export * as NodeHttpServer from "@effect/platform-node/NodeHttpServer"
export * as NodeWS from "@effect/platform-node/NodeWS"
export * as HttpRouter from "effect/http/HttpRouter"
export * as HttpServer from "effect/http/HttpServer"
export { HttpServerRequest } from "effect/http/HttpServerRequest"
export * as NodeHttp from "node:http"
export { makeFailuresTold } from "./NodeHttpFailures.ts"

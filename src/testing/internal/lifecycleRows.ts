/** What a good service does, each as a scenario over processes of its own. */
import * as Drain from "./lifecycleDrains.ts"
import * as Start from "./lifecycleStarts.ts"
import type { Scenario } from "./lifecycleSteps.ts"
import * as Stop from "./lifecycleStops.ts"

export interface Row {
  readonly name: string
  /** What held means. */
  readonly promise: string
  readonly scenario: Scenario
}

export const rows = [
  {
    name: "starts",
    promise: "It answers 2xx within the start time-out.",
    scenario: Start.starts
  },
  {
    name: "not-ready-first",
    promise:
      "Ready says 2xx only once requests succeed, and startup by then; live says 2xx whenever it answers. If the start can be made slow, ready answers meanwhile.",
    scenario: Start.notReadyFirst
  },
  {
    name: "sigterm-idle",
    promise: "SIGTERM ends an idle service in order, as soon as the drain delay is over.",
    scenario: Stop.idle("SIGTERM")
  },
  {
    name: "sigint-idle",
    promise: "So does SIGINT.",
    scenario: Stop.idle("SIGINT")
  },
  {
    name: "keep-alive-idle",
    promise: "An idle keep-alive connection does not delay that.",
    scenario: Stop.keepAliveIdle
  },
  {
    name: "silent-connection",
    promise: "Nor does a connection that never sent anything, as browsers open them in advance.",
    scenario: Stop.silentConnection
  },
  {
    name: "half-request",
    promise: "A connection that has sent half a request does not outlast the budget.",
    scenario: Stop.halfRequest
  },
  {
    name: "in-flight",
    promise: "A request that is being worked on is answered, and the service ends in order soon after.",
    scenario: Drain.inFlight("closed")
  },
  {
    name: "in-flight-keep-alive",
    promise: "The same when the client would keep the connection open.",
    scenario: Drain.inFlight("kept")
  },
  {
    name: "websocket",
    promise: "An open WebSocket gets a close frame, and the service ends in order within the budget.",
    scenario: Drain.webSocket
  },
  {
    name: "drain-serves",
    promise: "During the drain delay requests on new connections succeed.",
    scenario: Drain.drainServes
  },
  {
    name: "drain-probes",
    promise: "While draining, ready refuses from the first half on and live says 2xx throughout.",
    scenario: Drain.drainProbes
  },
  {
    name: "drained-refuses",
    promise: "After the drain delay new connections are refused, though a request is still in flight.",
    scenario: Drain.drainedRefuses
  },
  {
    name: "balancer",
    promise: "No request fails of a client that keeps its connections open and stops when ready refuses.",
    scenario: Drain.balancer
  },
  {
    name: "hung",
    promise: "A request that never ends does not outlast the budget.",
    scenario: Stop.hung
  },
  {
    name: "hung-neighbour",
    promise: "Nor does it spoil another one in flight.",
    scenario: Stop.hungNeighbour
  },
  {
    name: "second-signal",
    promise: "A second SIGTERM after the drain delay ends at once what the first one waits for.",
    scenario: Stop.secondSignal
  },
  {
    name: "blocked",
    promise: "A blocked event loop does not outlast twice the budget, and the end does not look like an orderly one.",
    scenario: Stop.blocked
  },
  {
    name: "background-failure",
    promise: "A failure in the background ends the service within the budget, with a code that tells.",
    scenario: Stop.backgroundFailure
  },
  {
    name: "port-taken",
    promise: "A port that is taken ends the start with a code above 0, and the output says why.",
    scenario: Start.portTaken("service")
  },
  {
    name: "probe-port-taken",
    promise: "So does that of the probes.",
    scenario: Start.portTaken("probes")
  },
  {
    name: "stdout-closed",
    promise: "With nobody reading its stdout any more it goes on serving, and stops in order.",
    scenario: Stop.stdoutClosed
  },
  {
    name: "sigterm-starting",
    promise:
      "SIGTERM at any moment of the start ends it within the budget: in order, or, until it serves, by the signal's default action.",
    scenario: Start.sigtermStarting
  },
  {
    name: "pid-1",
    promise: "As PID 1 it stops like anywhere else.",
    scenario: Start.asInit
  },
  {
    name: "nothing-left",
    promise: "When it has ended, so have its processes, and its ports can be bound at once.",
    scenario: Stop.nothingLeft
  },
  {
    name: "exit-codes",
    promise: "A stop in order, one that was forced and a failed start end with different codes, failures not with 0.",
    scenario: Stop.exitCodes
  }
] as const satisfies ReadonlyArray<Row>

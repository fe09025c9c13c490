// Stands in for `node:tls` in the command: what is imported for sockets that turn to TLS takes a tenth of a start to load, and the
// command has none. Loaded when it is asked for after all.
const tls = () => process.getBuiltinModule("node:tls")

module.exports = {
  get TLSSocket() {
    return tls().TLSSocket
  },
  get connect() {
    return tls().connect
  },
  get createSecureContext() {
    return tls().createSecureContext
  }
}

// Says yes to all that Firecracker's API is asked, and is small: hundreds of them cost next to nothing. Takes requests that come
// in one piece, on up to eight connections. Its guest prints CONSOLE_BYTES when it starts, and ends when it is asked to.
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#define CONNECTIONS 8
#ifndef CONSOLE_BYTES
#define CONSOLE_BYTES 0
#endif

static const char no_content[] = "HTTP/1.1 204 \r\nServer: Firecracker API\r\nConnection: keep-alive\r\n\r\n";
static const char version[] = "HTTP/1.1 200 \r\nServer: Firecracker API\r\nConnection: keep-alive\r\n"
                              "Content-Type: application/json\r\nContent-Length: 32\r\n\r\n{\"firecracker_version\":\"1.16.1\"}";

int main(int argc, char **argv) {
  const char *path = NULL;
  for (int i = 1; i < argc; i++) {
    if (strcmp(argv[i], "--version") == 0) return puts("Firecracker v1.16.1\n") < 0;
    if (strcmp(argv[i], "--snapshot-version") == 0) return puts("v8.0.0") < 0;
    if (strcmp(argv[i], "--api-sock") == 0 && i + 1 < argc) path = argv[i + 1];
  }
  // Does not outlive a benchmark that fails.
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  struct sockaddr_un address = {.sun_family = AF_UNIX};
  if (path == NULL || strlen(path) >= sizeof address.sun_path) return 1;
  strcpy(address.sun_path, path);
  struct pollfd fds[1 + CONNECTIONS];
  for (int i = 0; i <= CONNECTIONS; i++) fds[i] = (struct pollfd){.fd = -1, .events = POLLIN};
  fds[0].fd = socket(AF_UNIX, SOCK_STREAM, 0);
  if (bind(fds[0].fd, (struct sockaddr *)&address, sizeof address) != 0 || listen(fds[0].fd, CONNECTIONS) != 0) return 1;
  for (;;) {
    poll(fds, 1 + CONNECTIONS, -1);
    for (int i = 1; i <= CONNECTIONS; i++) {
      if (fds[i].fd < 0 && fds[0].revents != 0) {
        fds[i].fd = accept(fds[0].fd, NULL, NULL);
        fds[0].revents = 0;
      } else if (fds[i].fd >= 0 && fds[i].revents != 0) {
        char request[4096];
        ssize_t got = read(fds[i].fd, request, sizeof request - 1);
        if (got <= 0) {
          close(fds[i].fd);
          fds[i].fd = -1;
          continue;
        }
        request[got] = 0;
        const char *answer = strncmp(request, "GET", 3) == 0 ? version : no_content;
        if (write(fds[i].fd, answer, strlen(answer)) < 0) return 1;
        if (strstr(request, "SendCtrlAltDel") != NULL) return 0;
        if (strstr(request, "InstanceStart") == NULL) continue;
        for (int printed = 0; printed < CONSOLE_BYTES; printed += 64) printf("%063d\n", printed);
        fflush(stdout);
      }
    }
  }
}

/* The least that a Storage SCP can do: speak the upper layer, write the data set, answer success.
 *
 * A thread for each association, no checks, no limits: not a program to use, but the practical ceiling
 * against which receivers are measured, and a sink that holds up no sender. With -f each file is synced
 * before its response. With -r each association that took something says when it ends how many instances
 * it took, and the seconds at which the first came and the last was answered, as a line of JSON.
 *
 *     cc -O2 -pthread -o limit_scp limit_scp.c
 *     limit_scp PORT [-o FOLDER] [-f] [-r] [-m LONGEST_PDU]     without -o the data sets are thrown away
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { ASSOCIATE_RQ = 1, ASSOCIATE_AC, ASSOCIATE_RJ, P_DATA, RELEASE_RQ, RELEASE_RP, ABORT };
enum { COMMAND_BYTES = 4096, UID_BYTES = 64 };

static const char *folder;
static int is_synced, is_reporting, maximum_length = 131072;
static long files;

static uint32_t big32(const uint8_t *p) { return (uint32_t)p[0] << 24 | p[1] << 16 | p[2] << 8 | p[3]; }
static uint32_t big16(const uint8_t *p) { return p[0] << 8 | p[1]; }
static uint32_t little16(const uint8_t *p) { return p[0] | p[1] << 8; }
static void put32(uint8_t *p, uint32_t v) { p[0] = v >> 24; p[1] = v >> 16; p[2] = v >> 8; p[3] = v; }
static void put16(uint8_t *p, uint32_t v) { p[0] = v >> 8; p[1] = v; }

static int receive_all(int s, uint8_t *to, size_t size) {
  while (size) {
    ssize_t got = recv(s, to, size, MSG_WAITALL);
    if (got <= 0) return -1;
    to += got;
    size -= got;
  }
  return 0;
}

static int send_all(int s, const uint8_t *from, size_t size) {
  while (size) {
    ssize_t sent = send(s, from, size, MSG_NOSIGNAL);
    if (sent <= 0) return -1;
    from += sent;
    size -= sent;
  }
  return 0;
}

/* Accept every context with its first transfer syntax. */
static int accept_association(int s, const uint8_t *request, size_t size) {
  static const char class_uid[] = "1.2.826.0.1.3680043.9.9999.2";
  size_t length = sizeof class_uid - 1;
  uint8_t *answer = calloc(1, 2 * size + 256), *to = answer + 6;
  memcpy(to, request, 68);
  to += 68;
  for (size_t at = 68; at + 4 <= size; at += 4 + big16(request + at + 2)) {
    const uint8_t *item = request + at, *end = item + 4 + big16(item + 2), *sub = item + 8;
    if (item[0] == 0x10) {
      memcpy(to, item, end - item);
      to += end - item;
    } else if (item[0] == 0x20) {
      while (sub < end && sub[0] != 0x40) sub += 4 + big16(sub + 2);
      if (sub >= end) continue;
      uint32_t syntax = 4 + big16(sub + 2);
      to[0] = 0x21;
      put16(to + 2, 4 + syntax);
      to[4] = item[4];
      memcpy(to + 8, sub, syntax);
      to += 8 + syntax;
    }
  }
  to[0] = 0x50;
  put16(to + 2, 12 + length);
  to[4] = 0x51;
  put16(to + 6, 4);
  put32(to + 8, maximum_length);
  to[12] = 0x52;
  put16(to + 14, length);
  memcpy(to + 16, class_uid, length);
  to += 16 + length;
  answer[0] = ASSOCIATE_AC;
  put32(answer + 2, to - answer - 6);
  int failed = send_all(s, answer, to - answer);
  free(answer);
  return failed;
}

static uint8_t *put_element(uint8_t *to, int element, const void *value, uint32_t length) {
  memset(to, 0, 8);
  to[2] = element;
  to[3] = element >> 8;
  memcpy(to + 4, &length, 4);
  memcpy(to + 8, value, length);
  return to + 8 + length;
}

static const uint8_t *find_element(const uint8_t *command, size_t size, uint32_t element, uint32_t *length) {
  for (size_t at = 0; at + 8 <= size; at += 8 + *length) {
    memcpy(length, command + at + 4, 4);
    if (little16(command + at + 2) == element && at + 8 + *length <= size) return command + at + 8;
  }
  *length = 0;
  return NULL;
}

static int respond(int s, int context, const uint8_t *command, size_t size) {
  uint8_t out[1024] = {P_DATA}, *set = out + 12, *to = set + 12;
  uint16_t field = 0, message = 0, none = 0x0101, success = 0;
  uint32_t length, group;
  const uint8_t *value;
  if ((value = find_element(command, size, 0x0100, &length)) && length == 2) memcpy(&field, value, 2);
  if ((value = find_element(command, size, 0x0110, &length)) && length == 2) memcpy(&message, value, 2);
  field |= 0x8000;
  if ((value = find_element(command, size, 0x0002, &length)) && length <= UID_BYTES)
    to = put_element(to, 0x0002, value, length);
  to = put_element(to, 0x0100, &field, 2);
  to = put_element(to, 0x0120, &message, 2);
  to = put_element(to, 0x0800, &none, 2);
  to = put_element(to, 0x0900, &success, 2);
  if ((value = find_element(command, size, 0x1000, &length)) && length <= UID_BYTES)
    to = put_element(to, 0x1000, value, length);
  group = to - set - 12;
  put_element(set, 0x0000, &group, 4);
  put32(out + 2, to - set + 6);
  put32(out + 6, to - set + 2);
  out[10] = context;
  out[11] = 3;
  return send_all(s, out, to - out);
}

static double seconds(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return now.tv_sec + now.tv_nsec / 1e9;
}

static int open_file(void) {
  char path[512];
  snprintf(path, sizeof path, "%s/%ld.dcm", folder, __sync_fetch_and_add(&files, 1));
  return open(path, O_WRONLY | O_CREAT | O_TRUNC, 0600);
}

static void *serve(void *argument) {
  int s = (int)(intptr_t)argument, one = 1, file = -1;
  size_t room = 1 << 20, command_size = 0;
  long instances = 0;
  double first = 0, last = 0;
  uint8_t *body = malloc(room), header[6], pdv[6], command[COMMAND_BYTES];
  setsockopt(s, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
  while (!receive_all(s, header, 6)) {
    uint32_t left = big32(header + 2);
    if (header[0] != P_DATA) {
      if (left > room || receive_all(s, body, left)) break;
      if (header[0] == ASSOCIATE_RQ && !accept_association(s, body, left)) continue;
      if (header[0] == RELEASE_RQ) send_all(s, (uint8_t[]){RELEASE_RP, 0, 0, 0, 0, 4, 0, 0, 0, 0}, 10);
      break;
    }
    if (!first) first = seconds();
    while (left) {
      if (left < 6 || receive_all(s, pdv, 6)) goto end;
      uint32_t length = big32(pdv) - 2;
      if (length > room || length + 6 > left || receive_all(s, body, length)) goto end;
      left -= 6 + length;
      int is_last = pdv[5] & 2, is_whole = 0;
      if (pdv[5] & 1) {
        if (command_size + length > sizeof command) goto end;
        memcpy(command + command_size, body, length);
        command_size += length;
        uint32_t size;
        const uint8_t *type = find_element(command, command_size, 0x0800, &size);
        is_whole = is_last && type && little16(type) == 0x0101;
      } else {
        if (folder) {
          if (file < 0) file = open_file();
          if (write(file, body, length) != (ssize_t)length) goto end;
        }
        if (is_last && file >= 0) {
          if (is_synced && fdatasync(file)) goto end;
          close(file);
          file = -1;
        }
        is_whole = is_last;
      }
      if (is_whole) {
        if (respond(s, pdv[4], command, command_size)) goto end;
        command_size = 0;
        instances++;
        last = seconds();
      }
    }
  }
end:
  if (is_reporting && instances) {
    printf("{\"instances\": %ld, \"first\": %.6f, \"last\": %.6f}\n", instances, first, last);
    fflush(stdout);
  }
  if (file >= 0) close(file);
  close(s);
  free(body);
  return NULL;
}

int main(int count, char **arguments) {
  int option, one = 1, port = count > 1 ? atoi(arguments[1]) : 0;
  optind = 2;
  while ((option = getopt(count, arguments, "o:frm:")) > 0) {
    if (option == 'o') folder = optarg;
    if (option == 'f') is_synced = 1;
    if (option == 'r') is_reporting = 1;
    if (option == 'm') maximum_length = atoi(optarg);
  }
  int listener = socket(AF_INET, SOCK_STREAM, 0);
  setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
  struct sockaddr_in address = {
      .sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
  if (bind(listener, (void *)&address, sizeof address) || listen(listener, 128)) {
    perror("limit_scp");
    return 1;
  }
  for (;;) {
    int s = accept(listener, 0, 0);
    pthread_t thread;
    if (s < 0) continue;
    if (pthread_create(&thread, 0, serve, (void *)(intptr_t)s)) close(s);
    else pthread_detach(thread);
  }
}

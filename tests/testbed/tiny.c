// All that is in the tests' smallest image: a program that stands in for a trainer.
//
//   cc -static -Os -o tiny tiny.c
//
//   tiny            runs until SIGTERM, then ends with 143
//   tiny CODE       the same, ending with CODE
//   tiny slow       the same, a second after SIGTERM
//   tiny deaf       takes no notice of SIGTERM
//   tiny exit CODE  ends at once

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static int code = 143, slow;

static void end(int number) {
    (void)number;
    if (slow) sleep(1);
    if (write(1, "last words\n", 11) < 0) _exit(1);
    _exit(code);
}

int main(int count, char **arguments) {
    if (count > 2 && !strcmp(arguments[1], "exit")) return atoi(arguments[2]);
    slow = count > 1 && !strcmp(arguments[1], "slow");
    if (count > 1 && !slow && strcmp(arguments[1], "deaf")) code = atoi(arguments[1]);
    signal(SIGTERM, count > 1 && !strcmp(arguments[1], "deaf") ? SIG_IGN : end);
    puts("running");
    fflush(stdout);
    for (;;) pause();
}

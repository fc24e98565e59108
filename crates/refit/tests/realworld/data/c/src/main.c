#include <stdio.h>

#include "words.h"

int main(int argc, char **argv) {
    unsigned long count = 0;
    for (int i = 1; i < argc; i++)
        count += words(argv[i]);
    printf("%lu words\n", count);
    return 0;
}

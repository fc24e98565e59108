/* wordfreq: the ten most frequent words of a text. */
#include <ctype.h>
#include <stdio.h>
#include <string.h>

#include "table.h"

enum { WORD_MAX = 63, SHOWN = 10 };

static void count(FILE *text, struct table *table) {
    char word[WORD_MAX];
    size_t length = 0;
    int c;
    do {
        c = getc(text);
        if (c != EOF && isalpha(c)) {
            if (length < WORD_MAX)
                word[length++] = (char)tolower(c);
        } else if (length > 0) {
            table_add(table, word, length);
            length = 0;
        }
    } while (c != EOF);
}

static int self_test(void) {
    struct table table = {0};
    for (int i = 0; i < 1000; i++) {
        char word[8];
        int length = snprintf(word, sizeof word, "w%d", i % 100);
        table_add(&table, word, (size_t)length);
    }
    int good = table.used == 100 && table_get(&table, "w7") == 10 && table_get(&table, "none") == 0;
    table_free(&table);
    puts(good ? "self-test passed" : "self-test failed");
    return good ? 0 : 1;
}

int main(int argc, char **argv) {
    if (argc == 2 && strcmp(argv[1], "--self-test") == 0)
        return self_test();
    FILE *text = argc == 2 ? fopen(argv[1], "r") : stdin;
    if (text == NULL) {
        perror(argv[1]);
        return 1;
    }
    struct table table = {0};
    count(text, &table);
    table_sort(&table);
    for (size_t i = 0; i < table.used && i < SHOWN; i++)
        printf("%6lu %s\n", table.entries[i].count, table.entries[i].word);
    table_free(&table);
    return 0;
}

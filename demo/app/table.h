/* Counts of words: an open hash table that grows. */
#ifndef TABLE_H
#define TABLE_H

#include <stddef.h>

struct entry {
    char *word;
    unsigned long count;
};

struct table {
    struct entry *entries;
    size_t capacity, used;
};

void table_add(struct table *table, const char *word, size_t length);
unsigned long table_get(const struct table *table, const char *word);
/* Moves the entries to the front, most frequent first; the table is only a list then. */
void table_sort(struct table *table);
void table_free(struct table *table);

#endif

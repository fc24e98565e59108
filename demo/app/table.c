#include "table.h"

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void *checked(void *memory) {
    if (memory == NULL) {
        perror("wordfreq");
        exit(1);
    }
    return memory;
}

static uint64_t hash(const char *word, size_t length) {
    uint64_t value = 14695981039346656037u;
    for (size_t i = 0; i < length; i++)
        value = (value ^ (unsigned char)word[i]) * 1099511628211u;
    return value;
}

static struct entry *slot(const struct table *table, const char *word, size_t length) {
    size_t at = hash(word, length) & (table->capacity - 1);
    for (;;) {
        struct entry *entry = &table->entries[at];
        if (entry->word == NULL || (strlen(entry->word) == length && memcmp(entry->word, word, length) == 0))
            return entry;
        at = (at + 1) & (table->capacity - 1);
    }
}

static void grow(struct table *table) {
    struct table larger = {NULL, table->capacity ? table->capacity * 2 : 64, table->used};
    larger.entries = checked(calloc(larger.capacity, sizeof *larger.entries));
    for (size_t i = 0; i < table->capacity; i++)
        if (table->entries[i].word)
            *slot(&larger, table->entries[i].word, strlen(table->entries[i].word)) = table->entries[i];
    free(table->entries);
    *table = larger;
}

void table_add(struct table *table, const char *word, size_t length) {
    if (table->used * 2 >= table->capacity)
        grow(table);
    struct entry *entry = slot(table, word, length);
    if (entry->word == NULL) {
        entry->word = checked(malloc(length + 1));
        memcpy(entry->word, word, length);
        entry->word[length] = '\0';
        table->used++;
    }
    entry->count++;
}

unsigned long table_get(const struct table *table, const char *word) {
    return table->capacity ? slot(table, word, strlen(word))->count : 0;
}

static int by_count(const void *left, const void *right) {
    const struct entry *a = left, *b = right;
    if (a->count != b->count)
        return a->count < b->count ? 1 : -1;
    if (a->word == NULL || b->word == NULL)
        return 0;
    return strcmp(a->word, b->word);
}

void table_sort(struct table *table) {
    if (table->capacity)
        qsort(table->entries, table->capacity, sizeof *table->entries, by_count);
}

void table_free(struct table *table) {
    for (size_t i = 0; i < table->capacity; i++)
        free(table->entries[i].word);
    free(table->entries);
}

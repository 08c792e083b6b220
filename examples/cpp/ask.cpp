// The bundle's model/ folder in C++, through onnxruntime-genai's C API:  ask BUNDLE/model "What is ...?"
//
// `build` beside this file compiles it against the libraries of pip's wheels. genai's own releases come with a header,
// ort_genai_c.h; the wheel has none, so that what is used of the interface is declared here.

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <string>

extern "C" {
struct OgaResult;
struct OgaModel;
struct OgaTokenizer;
struct OgaTokenizerStream;
struct OgaSequences;
struct OgaGeneratorParams;
struct OgaGenerator;

const char* OgaResultGetError(const OgaResult*);
OgaResult* OgaCreateModel(const char* folder, OgaModel**);
OgaResult* OgaCreateTokenizer(const OgaModel*, OgaTokenizer**);
OgaResult* OgaCreateTokenizerStream(const OgaTokenizer*, OgaTokenizerStream**);
OgaResult* OgaTokenizerApplyChatTemplate(const OgaTokenizer*, const char* own_template, const char* messages,
                                         const char* tools, bool add_generation_prompt, const char** text);
OgaResult* OgaCreateSequences(OgaSequences**);
OgaResult* OgaTokenizerEncode(const OgaTokenizer*, const char* text, OgaSequences*);
OgaResult* OgaTokenizerStreamDecode(OgaTokenizerStream*, int32_t token, const char** text);
OgaResult* OgaCreateGeneratorParams(const OgaModel*, OgaGeneratorParams**);
OgaResult* OgaGeneratorParamsSetSearchBool(OgaGeneratorParams*, const char* name, bool);
OgaResult* OgaCreateGenerator(const OgaModel*, const OgaGeneratorParams*, OgaGenerator**);
OgaResult* OgaGenerator_AppendTokenSequences(OgaGenerator*, const OgaSequences*);
OgaResult* OgaGenerator_GenerateNextToken(OgaGenerator*);
OgaResult* OgaGenerator_GetNextTokens(const OgaGenerator*, const int32_t** tokens, size_t* count);
bool OgaGenerator_IsDone(OgaGenerator*);
void OgaDestroyString(const char*);
void OgaDestroyGenerator(OgaGenerator*);
void OgaDestroyGeneratorParams(OgaGeneratorParams*);
void OgaDestroySequences(OgaSequences*);
void OgaDestroyTokenizerStream(OgaTokenizerStream*);
void OgaDestroyTokenizer(OgaTokenizer*);
void OgaDestroyModel(OgaModel*);
void OgaShutdown();
}

static void check(OgaResult* result) {
  if (result == nullptr) return;
  std::fprintf(stderr, "error: %s\n", OgaResultGetError(result));
  std::exit(3);
}

// A string as JSON has it.
static std::string quoted(const std::string& text) {
  std::string json = "\"";
  for (const char c : text) {
    char escape[8];
    std::snprintf(escape, sizeof escape, "\\u%04x", static_cast<unsigned char>(c));
    json += c == '"' || c == '\\' || (c >= 0 && c < ' ') ? std::string(escape) : std::string(1, c);
  }
  return json + "\"";
}

int main(int count, char** arguments) {
  if (count != 3) {
    std::fprintf(stderr, "usage: ask BUNDLE/model QUESTION\n");
    return 2;
  }
  OgaModel* model;
  check(OgaCreateModel(arguments[1], &model));
  OgaTokenizer* tokenizer;
  check(OgaCreateTokenizer(model, &tokenizer));

  const std::string messages = "[{\"role\": \"user\", \"content\": " + quoted(arguments[2]) + "}]";
  const char* prompt;
  check(OgaTokenizerApplyChatTemplate(tokenizer, nullptr, messages.c_str(), nullptr, true, &prompt));
  OgaSequences* ids;
  check(OgaCreateSequences(&ids));
  check(OgaTokenizerEncode(tokenizer, prompt, ids));
  OgaDestroyString(prompt);

  OgaGeneratorParams* parameters;
  check(OgaCreateGeneratorParams(model, &parameters));
  check(OgaGeneratorParamsSetSearchBool(parameters, "do_sample", false));
  OgaGenerator* generator;
  check(OgaCreateGenerator(model, parameters, &generator));
  check(OgaGenerator_AppendTokenSequences(generator, ids));
  OgaTokenizerStream* stream;
  check(OgaCreateTokenizerStream(tokenizer, &stream));
  while (!OgaGenerator_IsDone(generator)) {
    check(OgaGenerator_GenerateNextToken(generator));
    const int32_t* tokens;
    size_t sequences;
    check(OgaGenerator_GetNextTokens(generator, &tokens, &sequences));
    const char* text;
    check(OgaTokenizerStreamDecode(stream, tokens[0], &text));
    std::fputs(text, stdout);
    std::fflush(stdout);
  }
  std::puts("");

  OgaDestroyTokenizerStream(stream);
  OgaDestroyGenerator(generator);
  OgaDestroyGeneratorParams(parameters);
  OgaDestroySequences(ids);
  OgaDestroyTokenizer(tokenizer);
  OgaDestroyModel(model);
  OgaShutdown();
  return 0;
}

import { defineConfig } from "vite";

// Names without digests: the server answers with an ETag, and a build changes files in place.
export default defineConfig({
  base: "/web/",
  publicDir: "public",
  build: {
    outDir: "../src/mezzotint/serve/web",
    emptyOutDir: true,
    modulePreload: false,
    target: "es2022",
    sourcemap: false,
    assetsInlineLimit: 0,
    rollupOptions: {
      output: {
        entryFileNames: "app.js",
        chunkFileNames: "[name].js",
        assetFileNames: "[name][extname]",
      },
    },
  },
});
